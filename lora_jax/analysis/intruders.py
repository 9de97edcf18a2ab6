"""Intruder dimensions: strong directions of a tuned weight that the pretrained weight has nothing
like, and how to scale them down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lora_jax.analysis.spectra import dense_svd


@dataclass(frozen=True)
class Intruders:
    """What was found in one matrix. `similarity[j]` is the largest |cosine| of the tuned weight's
    j-th direction with any of the base's.

    indices: which of the top directions are intruders, strongest first.
    """

    indices: tuple[int, ...]
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


def find_intruders(base: Any, tuned: Any, *, top: int = 10, threshold: float = 0.5) -> Intruders:
    """The intruders among the `top` strongest output directions of `tuned` (in, out): those that no
    direction of `base` is near to.

    A direction y_j of the tuned weight is an intruder if max_i |cos(y_j, x_i)| < threshold over all
    singular vectors x_i of the base. The vectors are those on the output side (the papers' left
    ones, of W^T in our layout), as in PEFT's implementation.

    Reference: LoRA vs Full Fine-tuning: An Illusion of Equivalence, Shuttleworth et al. 2024 (arXiv
        2410.21228).

    Raises:
        ValueError: the shapes differ, or `top` is below 1 or exceeds the smaller side.
    """
    base, tuned = np.asarray(base, np.float64), np.asarray(tuned, np.float64)
    if base.shape != tuned.shape or base.ndim != 2:
        raise ValueError(
            f"find_intruders compares two matrices of one shape, got {base.shape} and "
            f"{tuned.shape}."
        )
    if not 1 <= top <= min(base.shape):
        raise ValueError(f"top must be from 1 to {min(base.shape)} (the smaller side), got {top}.")
    similarity = np.abs(dense_svd(tuned).vt[:top] @ dense_svd(base).vt.T).max(-1)
    return Intruders(tuple(int(j) for j in np.flatnonzero(similarity < threshold)), similarity)


def scale_intruders(
    base: Any, tuned: Any, *, keep: float = 0.75, top: int = 10, threshold: float = 0.5
) -> np.ndarray:
    """The tuned weight (in, out) with each intruder's component sigma u v^T multiplied by `keep` (1
    changes nothing, 0 removes them).

    Reference: Shuttleworth et al. 2024, section 5, where it lowers the loss on the pretraining
        distribution.

    Raises:
        ValueError: `keep` is not from 0 to 1, or as `find_intruders`.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must be from 0 (remove) to 1 (leave), got {keep}.")
    found = list(find_intruders(base, tuned, top=top, threshold=threshold).indices)
    u, s, vt = dense_svd(tuned)
    return np.asarray(tuned, np.float64) - (1 - keep) * (u[:, found] * s[found]) @ vt[found]


class Shrunk(NamedTuple):
    """A changed weight (in, out), and the Frobenius norm of what was taken from the tuned one."""

    weight: np.ndarray
    removed: float


def shrink_controls(
    base: Any, tuned: Any, *, keep: float = 0.75, top: int = 10, threshold: float = 0.5
) -> dict[str, Shrunk]:
    """The tuned weight shrunk in three ways that take away the same Frobenius norm, for a caller to
    evaluate: what intruders do beyond any shrinking shows in the difference.

    intruders: as `scale_intruders`. others: as many directions that are no intruders, those nearest
    to them in singular value, all by one factor (more of them where so many do not have that
    norm). update: the whole of tuned - base by one factor. `removed` says what each took; that of
    `update` is smaller where the whole update is. Without intruders, all are the tuned weight.

    Raises:
        ValueError: as `scale_intruders`.
    """
    base, tuned = np.asarray(base, np.float64), np.asarray(tuned, np.float64)
    without = scale_intruders(base, tuned, keep=keep, top=top, threshold=threshold)
    removed = float(np.linalg.norm(tuned - without))
    found = list(find_intruders(base, tuned, top=top, threshold=threshold).indices)
    u, s, vt = dense_svd(tuned)
    others = _nearest(s, found, removed)

    size = float(np.linalg.norm(s[others]))
    taken = min(removed / size, 1.0) if size else 0.0
    update = tuned - base
    whole = min(removed / (float(np.linalg.norm(update)) or 1.0), 1.0)
    changed = {
        "intruders": without,
        "others": tuned - taken * (u[:, others] * s[others]) @ vt[others],
        "update": tuned - whole * update,
    }
    return {
        name: Shrunk(weight, float(np.linalg.norm(tuned - weight)))
        for name, weight in changed.items()
    }


def random_update(base: Any, tuned: Any, *, rank: int | None = None, seed: int = 0) -> np.ndarray:
    """`base` (in, out) plus a random update of the Frobenius norm of tuned - base: a product of
    Gaussian factors of `rank`, or a Gaussian matrix for None.

    Its intruders are those that the norm and the rank alone make.

    Raises:
        ValueError: the shapes differ, or `rank` is not from 1 to the smaller side.
    """
    base, tuned = np.asarray(base, np.float64), np.asarray(tuned, np.float64)
    if base.shape != tuned.shape or base.ndim != 2:
        raise ValueError(f"Two matrices of one shape are needed, got {base.shape}, {tuned.shape}.")
    if rank is not None and not 1 <= rank <= min(base.shape):
        raise ValueError(
            f"rank must be from 1 to {min(base.shape)} (the smaller side), got {rank}."
        )
    dice = np.random.default_rng(seed)
    drawn = (
        dice.standard_normal(base.shape)
        if rank is None
        else dice.standard_normal((base.shape[0], rank))
        @ dice.standard_normal((rank, base.shape[1]))
    )
    return base + drawn * (np.linalg.norm(tuned - base) / np.linalg.norm(drawn))


def _nearest(s: np.ndarray, found: list[int], norm: float) -> list[int]:
    """As many other directions as were found, each the nearest that is left in singular value, and
    more of the strongest until they hold `norm`.
    """
    left = [n for n in range(len(s)) if n not in found]
    chosen: list[int] = []
    for n in found[: len(left)]:
        chosen.append(
            min((k for k in left if k not in chosen), key=lambda k, n=n: abs(s[k] - s[n]))
        )
    for n in left:
        if np.linalg.norm(s[chosen]) >= norm:
            break
        if n not in chosen:
            chosen.append(n)
    return sorted(chosen)
