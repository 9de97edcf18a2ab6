"""Intruder dimensions: strong directions of a tuned weight that the pretrained weight has nothing
like, and how to scale them down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
