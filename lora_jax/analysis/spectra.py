"""Singular values of what was learnt, from the factors alone, and how many of them matter."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

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
