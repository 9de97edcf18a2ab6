"""How far the directions of two matrices agree: the similarity phi of LoRA's section 7, and what
chance alone would give.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float


def input_directions(matrix: Any, count: int | None = None) -> np.ndarray:
    """Orthonormal directions in the space of inputs, (*stack, in, count), the strongest first.

    `matrix` is (*stack, in, r): factor `a`, a weight, or a dense update. LoRA's A is our `a`
    transposed, so these are the right-singular vectors of A. They are computed in float64.

    Raises:
        ValueError: `count` exceeds the smaller side.
    """
    matrix = np.asarray(matrix, np.float64)
    most = min(matrix.shape[-2:])
    if count is not None and not 1 <= count <= most:
        raise ValueError(
            f"A matrix of shape {matrix.shape[-2:]} has 1 to {most} directions, got count={count}."
        )
    return np.linalg.svd(matrix, full_matrices=False)[0][..., : count or most]


def phi(u: Any, v: Any) -> np.ndarray:
    """The similarity phi(i, j) of the first i directions of `u` and the first j of `v`, for all i
    and j: (*stack, I, J), in [0, 1].

    phi(i, j) = ||U_i^T V_j||_F^2 / min(i, j): 1 where one subspace holds the other, 0 where they
    are orthogonal. It equals 1 - d^2 / p with p = min(i, j) and d the projection metric. (The
    appendix of the paper prints (1 - d^2) / p, which would not be 1 for equal subspaces.)

    Args:
        u, v: orthonormal directions as columns, (*stack, in, I) and (*stack, in, J), from
            `input_directions`.

    Reference: LoRA, Hu et al. 2021, section 7.2 and Appendix G (arXiv 2106.09685).

    Raises:
        ValueError: the directions live in spaces of different size.
    """
    u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
    if u.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"phi compares directions of one space, got {u.shape[-2]} and {v.shape[-2]} inputs."
        )
    overlap = np.cumsum(np.cumsum((np.swapaxes(u, -2, -1) @ v) ** 2, axis=-2), axis=-1)
    smaller = np.minimum(
        np.arange(1, u.shape[-1] + 1)[:, None], np.arange(1, v.shape[-1] + 1)[None]
    )
    return overlap / smaller


def random_phi(i: int, j: int, dimension: int) -> float:
    """The mean of phi(i, j) over uniformly random subspaces of a space of that dimension: max(i, j)
    / dimension.

    E ||U_i^T V_j||_F^2 = i j / dimension. It is far from 0 in small models: 0.167 for j = 64 of
    384.
    """
    if min(i, j) < 1 or max(i, j) > dimension:
        raise ValueError(
            f"Subspaces of {dimension} dimensions have 1 to {dimension} directions, got {i} and "
            f"{j}."
        )
    return max(i, j) / dimension


class Overlap(NamedTuple):
    """How far the first i directions of one matrix and the first j of another agree beyond chance,
    each (*stack, I, J) for all i and j.

    phi: what `phi` gives. chance, deviation: mean and standard deviation of phi over random
    subspaces of those sizes, (I, J). share: (phi - chance) / (1 - chance), 0 by chance and 1 for
    one subspace in the other, whatever the sizes. z: (phi - chance) / deviation. p: the probability
    that random subspaces agree as much; near 1, they hardly ever agree so little.
    """

    phi: Float[np.ndarray, "*stack I J"]
    chance: Float[np.ndarray, "I J"]
    deviation: Float[np.ndarray, "I J"]
    share: Float[np.ndarray, "*stack I J"]
    z: Float[np.ndarray, "*stack I J"]
    p: Float[np.ndarray, "*stack I J"]


def overlap_beyond_chance(u: Any, v: Any) -> Overlap:
    """phi of two sets of orthonormal directions beside what uniformly random subspaces of the same
    sizes give, for all i and j and every layer of a stack.

    With T = ||U_i^T V_j||_F^2 the random mean is E T = i j / d, so that of phi is max(i, j) / d, and
    Var T = 2 i (d - i) j (d - j) / (d^2 (d - 1) (d + 2)), from the moments of a random projection.
    p is the tail of the beta distribution between the least possible T, max(0, i + j - d), and
    min(i, j) that has these two moments: exact for i = 1 or j = 1. Where a subspace is the whole
    space, phi is 1 by necessity and tells nothing: share and z are 0, p is 1.

    Args:
        u, v: as in `phi`: (*stack, in, I) and (*stack, in, J).

    Raises:
        ValueError: the directions live in spaces of different size.
    """
    from scipy.stats import beta

    found, d = phi(u, v), np.shape(u)[-2]
    i = np.arange(1, found.shape[-2] + 1.0)[:, None]
    j = np.arange(1, found.shape[-1] + 1.0)[None]
    smaller = np.minimum(i, j)
    chance = np.maximum(i, j) / d
    deviation = np.sqrt(
        2 * i * (d - i) * j * (d - j) / (d**2 * max(d - 1, 1) * (d + 2)) / smaller**2
    )

    # phi on [least, 1] as a beta variable on [0, 1]; where it cannot vary, any numbers do.
    least = np.maximum(i + j - d, 0) / smaller
    told = deviation > 0
    width = np.where(told, 1 - least, 1)
    mean, variance = (chance - least) / width, np.where(told, (deviation / width) ** 2, 1)
    weight = np.where(told, mean * (1 - mean) / variance - 1, 1)
    first, second = np.where(told, mean * weight, 1), np.where(told, (1 - mean) * weight, 1)
    tail = beta.sf(np.clip((found - least) / width, 0, 1), first, second)

    return Overlap(
        found,
        chance,
        deviation,
        np.where(told, (found - chance) / np.where(told, 1 - chance, 1), 0),
        np.where(told, (found - chance) / np.where(told, deviation, 1), 0),
        np.where(told, tail, 1),
    )


def shared_start(first: Any, second: Any) -> float:
    """phi between the columns of two initial factors `a` (in, r) and (in, s), taken as whole
    subspaces, minus what chance gives.

    The same-seed trap: adapters that start from one random `a` agree before anything is learnt.
    Above 3 standard deviations of chance (`overlap_beyond_chance`), a similarity of the trained factors tells
    about the seed, not about the task.
    """
    u, v = input_directions(first), input_directions(second)
    i, j = u.shape[-1], v.shape[-1]
    return float(phi(u, v)[..., -1, -1].mean() - random_phi(i, j, u.shape[-2]))
