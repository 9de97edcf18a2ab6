"""How the update stands to the weight that it changes: LoRA's amplification factor and the weight's
own top directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_jax.analysis.spectra import Svd, dense_svd
from lora_jax.analysis.subspace import phi


@dataclass(frozen=True)
class Amplification:
    """One column of LoRA's Table 7 for one matrix. Norms are Frobenius norms.

    projected: ||U^T W V^T|| on the update's own directions; top: on W's top `rank` directions;
    random: on random ones of the same rank, the mean; random_deviation: the standard deviation of
    single draws.
    factor: ||update|| / projected: by how much what W has in the update's directions was amplified.
    It grows with alpha and the learning rate, and with a falling rank for any update: `ratio` does
    not.
    """

    rank: int
    projected: float
    top: float
    random: float
    weight: float
    update: float
    random_deviation: float

    @property
    def ratio(self) -> float:
        """projected / random: 1 for an update whose directions have nothing to do with W, above 1
        where it lies along directions that W stresses.
        """
        return self.projected / self.random

    @property
    def z(self) -> float:
        """How many standard deviations of random directions `projected` lies above their mean."""
        return (self.projected - self.random) / self.random_deviation

    @property
    def factor(self) -> float:
        """||update|| / ||U^T W V^T||."""
        return self.update / self.projected if self.projected else float("inf")


def amplification_of(
    weight: Any, update: Svd, *, rank: int | None = None, samples: int = 32, seed: int = 0
) -> Amplification:
    """The amplification factor of one matrix (in, out) by an update, and its neighbours in LoRA's
    Table 7.

    Args:
        update: from `update_svd` or `dense_svd`, of one matrix.
        rank: directions of the update that count; by default those whose singular value is not 0
            (above 1e-10 of the largest).
        samples: pairs of random directions, 2 or more.

    Reference: LoRA, Hu et al. 2021, section 7.3 and Table 7.

    Raises:
        ValueError: the update is 0, there are stack axes, or `samples` is below 2.
    """
    w = np.asarray(weight, np.float64)
    if w.ndim != 2 or update.s.ndim != 1:
        raise ValueError(
            f"amplification_of takes one matrix, got a weight of shape {w.shape} and "
            f"{update.s.ndim - 1} stack axes of the update."
        )
    if not update.s.any():
        raise ValueError("The update is 0: it has no directions to amplify.")

    if samples < 2:
        raise ValueError(
            f"A spread of random directions needs samples of 2 or more, got {samples}."
        )

    used = int((update.s > 1e-10 * update.s[0]).sum())
    rank = used if rank is None else min(rank, used)
    own = dense_svd(w)
    dice = np.random.default_rng(seed)
    chance = [
        np.linalg.norm(
            _orthonormal(dice, w.shape[0], rank).T @ w @ _orthonormal(dice, w.shape[1], rank)
        )
        for _ in range(samples)
    ]

    return Amplification(
        rank=rank,
        projected=float(np.linalg.norm(update.u[:, :rank].T @ w @ update.vt[:rank].T)),
        top=float(np.linalg.norm(own.s[:rank])),
        random=float(np.mean(chance)),
        weight=float(np.linalg.norm(own.s)),
        update=float(np.linalg.norm(update.s)),
        random_deviation=float(np.std(chance, ddof=1)),
    )


def overlap_with_top(weight: Any, update: Svd, *, share: float = 0.1, rank: int = 4) -> float:
    """phi between the top `share` of W's input directions and the top `rank` of the update's;
    chance gives that share of the inputs.

    Reference: LoRA, Hu et al. 2021, Appendix H.4, Figure 8.
    """
    w = np.asarray(weight, np.float64)
    count = max(1, round(share * min(w.shape)))
    return float(
        phi(dense_svd(w).u[:, :count], update.u[:, : min(rank, update.u.shape[-1])])[-1, -1]
    )


def projections(weight: Any, update: Svd, *, rank: int | None = None) -> np.ndarray:
    """u_i^T W v_i for the update's i-th pair of directions, (rank,): what the weight already did
    there, with its sign.
    """
    rank = update.s.shape[-1] if rank is None else rank
    return np.einsum(
        "ik,io,ko->k", update.u[:, :rank], np.asarray(weight, np.float64), update.vt[:rank]
    )


def _orthonormal(dice: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(dice.standard_normal((rows, columns)))[0]
