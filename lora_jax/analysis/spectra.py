"""Singular values of what was learnt, from the factors alone, and how many of them matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lora_jax.core.lowrank import LowRank


class Svd(NamedTuple):
    """u (*stack, in, n), s (*stack, n) from large to small, vt (*stack, n, out), in float64: the
    matrix is (u * s) @ vt.
    """

    u: np.ndarray
    s: np.ndarray
    vt: np.ndarray


def update_svd(low: LowRank) -> Svd:
    """The singular value decomposition of an adapter's update, n = its rank, without the dense
    update ever being formed.

    With a = Qa Ra and b^T = Qb Rb, the update is Qa (Ra diag(scale) Rb^T) Qb^T: only a matrix of
    rank x rank is decomposed. A start that is subtracted (PiSSA and the like) and a variant's gains
    are part of the update; DoRA's magnitude is not.
    """
    plain = low.plain()
    a = np.asarray(plain.a, np.float64) * np.asarray(plain.scale, np.float64)[..., None, :]
    qa, ra = np.linalg.qr(a)
    qb, rb = np.linalg.qr(np.swapaxes(np.asarray(plain.b, np.float64), -2, -1))
    u, s, vt = np.linalg.svd(ra @ np.swapaxes(rb, -2, -1), full_matrices=False)
    return Svd(qa @ u, s, vt @ np.swapaxes(qb, -2, -1))


def dense_svd(matrix: Any) -> Svd:
    """The decomposition of matrices (*stack, in, out), in float64: of a weight, or of the
    difference that full fine-tuning made.
    """
    return Svd(*np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False))


def rank_for(s: Any, share: float = 0.9) -> np.ndarray:
    """The smallest number of singular values whose squares hold `share` of all, (*stack,): the rank
    for 90 % of the variance.

    0 where all are 0.

    Reference: LoRA Learns Less and Forgets Less, Biderman et al. 2024, section 5 (arXiv
        2405.09673).
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}.")
    energy = np.cumsum(np.asarray(s, np.float64) ** 2, axis=-1)
    total = energy[..., -1:]
    # Sums of squares round: at share 1 the last value must not be missed or counted twice.
    reached = (energy < share * total * (1 - 1e-12)).sum(-1) + 1
    return np.where(total[..., 0] > 0, reached, 0)


def effective_rank(s: Any) -> np.ndarray:
    """exp of the entropy of the singular values over their sum, (*stack,): n for n equal ones, 1
    for a single one.

    Reference: Roy & Vetterli 2007, The effective rank.
    """
    s = np.asarray(s, np.float64)
    total = s.sum(-1, keepdims=True)
    share = np.where(total > 0, s / np.where(total > 0, total, 1), 0)
    logs = np.log(np.where(share > 0, share, 1.0))
    return np.exp(-(share * logs).sum(-1)) * (total[..., 0] > 0)


class GaussianRank(NamedTuple):
    """A rank (*stack,) beside that of Gaussian matrices of the same shape: their mean and standard
    deviation, and the ratio to the mean, (*stack,).
    """

    rank: Float[np.ndarray, "*stack"]
    chance: float
    deviation: float
    ratio: Float[np.ndarray, "*stack"]


def rank_beside_gaussian(
    s: Any,
    shape: tuple[int, int],
    *,
    rank: int | None = None,
    measure: Callable[[Any], np.ndarray] = rank_for,
    samples: int = 32,
    seed: int = 0,
) -> GaussianRank:
    """The effective rank of an update and how much of it is its shape: that of Gaussian matrices
    (in, out), or of products of Gaussian factors (in, rank) and (rank, out).

    A 4 d x d matrix holds 90 % of its energy in more directions than a d x d one whatever was
    learnt, so MLP and attention compare by `ratio`: 1 is a matrix without structure.

    Args:
        s: singular values (*stack, n).
        shape: (in, out) of the matrix.
        rank: of an adapter's factors; None for an update of full rank.
        measure: `rank_for`, `effective_rank`, or anything of singular values (*stack, n).

    Raises:
        ValueError: `rank` is not from 1 to the smaller side, or `s` has more values than such a
            matrix.
    """
    n = min(shape) if rank is None else rank
    if not 1 <= n <= min(shape) or np.shape(s)[-1] > min(shape):
        raise ValueError(
            f"A matrix of shape {shape} has a rank from 1 to {min(shape)}, got rank={rank} and "
            f"{np.shape(s)[-1]} singular values."
        )

    dice = np.random.default_rng(seed)
    if rank is None:
        drawn = _triangles(dice, samples, max(shape), n)
    else:
        one, other = (_triangles(dice, samples, side, n) for side in shape)
        drawn = one @ np.swapaxes(other, -1, -2)
    chance = measure(np.linalg.svd(drawn, compute_uv=False))
    found = np.asarray(measure(s), np.float64)
    return GaussianRank(
        found, float(np.mean(chance)), float(np.std(chance)), found / float(np.mean(chance))
    )


def _triangles(dice: np.random.Generator, samples: int, rows: int, n: int) -> np.ndarray:
    """R of the QR decomposition of Gaussian matrices (rows, n), drawn as such (Bartlett 1933): it
    has the same singular values, and nothing of the size of `rows` is formed.
    """
    upper = np.triu(dice.standard_normal((samples, n, n)), 1)
    upper[:, np.arange(n), np.arange(n)] = np.sqrt(
        dice.chisquare(rows - np.arange(n), (samples, n))
    )
    return upper
