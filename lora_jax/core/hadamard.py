"""A rotation of a weight's inputs with random signs, which spreads large weights over many.

R = H D, where D holds signs and H, in blocks, is the Hadamard matrix over the root of its size (the
incoherence processing of QuIP#, Tseng et al. 2024, arXiv 2402.04396, section 3, on the input side;
QuaRot, Ashkboos et al. 2024, arXiv 2404.00456). Blocks are of the largest power of two that divides
the inputs; the signs follow from their number alone. R is orthogonal: x W = (R x) (R W).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

ROTATIONS = ("none", "hadamard")


def rotated(matrix: Float[Array, "*stack in out"]) -> Float[Array, "*stack in out"]:
    """`R @ matrix` of matrices in float32, by additions alone before one product: the same numbers
    in every program.

    Raises:
        ValueError: the number of rows is odd.
    """
    return _mixed(matrix * _signs(matrix.shape[-2])[:, None])


def rotated_back(matrix: Float[Array, "*stack in out"]) -> Float[Array, "*stack in out"]:
    """`R.T @ matrix`, likewise."""
    return _mixed(matrix) * _signs(matrix.shape[-2])[:, None]


def rotated_inputs(x: Float[Array, "t in"], back: bool = False) -> Float[Array, "t in"]:
    """R applied to each row of x, or with `back` its inverse: in float32, rounded once to x's
    dtype.
    """
    turn = rotated_back if back else rotated
    return turn(x.astype(jnp.float32)[..., None])[..., 0].astype(x.dtype)


def rotated_moment(moment: Float[Array, "*stack in in"]) -> Float[Array, "*stack in in"]:
    """The second moment of rotated inputs, R M R^T."""
    return rotated(jnp.swapaxes(rotated(jnp.swapaxes(moment, -1, -2)), -1, -2))


def block_of(rows: int) -> int:
    """The largest power of two that divides a number of inputs.

    Raises:
        ValueError: it is odd.
    """
    block = rows & -rows
    if block < 2:
        raise ValueError(
            f"rotation 'hadamard' mixes an even number of inputs, and this weight has {rows}. Leave "
            "it out of the rule, or give it one with rotation 'none'."
        )
    return block


def _mixed(matrix: Array) -> Array:
    """H @ matrix, block by block."""
    *stack, rows, out = matrix.shape
    size = block_of(rows)

    def one(_: Any, x: Array) -> Array:
        pairs = x.reshape(*stack, -1, size // 2, 2, out)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        return jnp.concatenate([first + second, first - second], -2)

    # Every step is the same, and takes the last bit of a row's number to its front. In a loop: XLA
    # would compute the first steps anew for each of the last.
    blocks = matrix.reshape(*stack, -1, size, out)
    mixed = jax.lax.fori_loop(0, int(math.log2(size)), one, blocks)
    return mixed.reshape(matrix.shape) * np.float32(1 / math.sqrt(size))


@functools.cache
def _signs(rows: int) -> np.ndarray:
    # NumPy promises that this generator's numbers stay as they are.
    bits = np.random.RandomState(rows).randint(0, 2, rows)
    return (2 * bits - 1).astype(np.float32)
