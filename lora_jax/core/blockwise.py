"""Arrays in 8 bits, 256 numbers to a block: how the moments of an optimiser are kept small."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, UInt8

from lora_jax.core import codebooks

BLOCK = 256  # bitsandbytes' size, of optimiser state and of scales: its kernels take no other


class Blockwise(struct.PyTreeNode):
    """`map[codes] * absmax`, with one `absmax` for every 256 numbers along one axis.

    `codes` has the array's shape, `absmax` too but for `axis`, which counts blocks, of which the
    last may be short. The axis is negative: axes are counted from the right, so stack axes may come
    and go, and what is cut or padded along another axis leaves every block as it is. `signed` says
    which dynamic map the codes are of: the one with both signs, or the one from 0 up that has a
    digit more.
    """

    codes: UInt8[Array, "*axes"]
    absmax: Float[Array, "*blocks"]
    axis: int = struct.field(pytree_node=False)
    signed: bool = struct.field(pytree_node=False)

    def restore(self) -> Float[Array, "*axes"]:
        """The float32 numbers."""
        levels = codebooks.look_up(codebooks.dynamic_map(self.signed), self.codes)
        values = blocked(levels, self.axis) * jnp.expand_dims(self.absmax, self.axis)
        return flat(values, self.codes.shape[self.axis], self.axis)


def zero_blocks(shape: tuple[int, ...], *, axis: int, signed: bool) -> Blockwise:
    """What `quantize_blocks` gives for zeros, without a search, which would cost compiling time."""
    blocks = list(shape)
    blocks[axis] = -(-shape[axis] // BLOCK)
    zero = int(np.searchsorted(codebooks.dynamic_map(signed), 0.0))
    return Blockwise(
        codes=jnp.full(shape, zero, jnp.uint8),
        absmax=jnp.zeros(blocks, jnp.float32),
        axis=axis,
        signed=signed,
    )


def quantize_blocks(x: Float[Array, "*axes"], *, axis: int, signed: bool) -> Blockwise:
    """The 8-bit codes nearest to `x`, each block divided by its largest magnitude; ties go down.

    Without a sign, what is above 0 stays above 0: it takes the lowest level that is. (The nearest
    level would be 0 below 1.6e-7 of the largest, as on bitsandbytes' CUDA backend; its CPU backend
    looks levels up in a table of cells 3e-5 wide, and never takes 0.)

    Reference: 8-bit Optimizers via Block-wise Quantization, Dettmers et al. 2022, section 2
    (arXiv 2110.02861).

    >>> quantize_blocks(jnp.ones((600, 8)), axis=-2, signed=True).absmax.shape
    (3, 8)
    """
    blocks = blocked(x.astype(jnp.float32), axis)
    absmax = jnp.abs(blocks).max(axis)
    unit = blocks * jnp.expand_dims(jnp.where(absmax > 0, 1.0 / absmax, 0.0), axis)
    codes = nearest_dynamic(unit, signed=signed)
    if not signed:
        # A second moment of 0 beside a first that is not would make a step of 1 / eps.
        codes = jnp.where(unit > 0, jnp.maximum(codes, 1), codes)
    codes = flat(codes, x.shape[axis], axis)
    return Blockwise(codes=codes, absmax=absmax, axis=axis, signed=signed)


# The upper halves of 2**-25, which is below every midpoint of both maps, and of 1.
_FIRST_CELL, _LAST_CELL = (127 - 25) << 7, 127 << 7


def nearest_dynamic(
    unit: Float[Array, "*axes"], *, signed: bool, ties: codebooks.Ties = "lower"
) -> UInt8[Array, "*axes"]:
    """The code of the level of a dynamic map that is nearest to each number of [-1, 1].

    That is how many thresholds lie below it. The upper half of a float32's bits names a cell in
    which there is one threshold at most, so a table and one comparison give what a binary search
    does in eight steps, to the last bit.
    """
    below, inside = _cells(signed, ties)
    bits = jax.lax.bitcast_convert_type(unit, jnp.uint32)
    upper = ((bits & 0x7FFFFFFF) >> 16).astype(jnp.int32)
    cell = jnp.clip(upper - _FIRST_CELL, 0, _LAST_CELL - _FIRST_CELL)
    if signed:
        cell = 2 * cell + (bits >> 31).astype(jnp.int32)
    above = unit > codebooks.look_up(inside, cell)
    return codebooks.look_up(below, cell) + above.astype(jnp.uint8)


@functools.cache
def _cells(signed: bool, ties: codebooks.Ties) -> tuple[np.ndarray, np.ndarray]:
    """For each cell how many thresholds lie below it, and the one inside or infinity.

    The first cell begins at 0; cells of negative numbers stand after their twins.
    """
    levels = tuple(map(float, codebooks.dynamic_map(signed)))
    _, thresholds = codebooks.Format("dynamic", 8, levels, ties=ties).search()

    upper = np.arange(_FIRST_CELL, _LAST_CELL + 1, dtype=np.uint32) << 16
    smallest = np.where(upper == upper[0], 0, upper).view(np.float32)
    largest = (upper | 0xFFFF).view(np.float32)
    if signed:
        smallest, largest = (
            np.stack([x, -y], 1).ravel() for x, y in ((smallest, largest), (largest, smallest))
        )

    below, up_to = (np.searchsorted(thresholds, edge, "left") for edge in (smallest, largest))
    inside = np.append(thresholds, np.float32(np.inf))[below]
    return below.astype(np.uint8), np.where(up_to > below, inside, np.float32(np.inf))


def blocked(x: Array, axis: int, fill: float = 0.0) -> Array:
    """The array with (blocks, 256) in place of `axis`, the last block completed with `fill`."""
    at = x.ndim + axis
    short = [(0, -x.shape[at] % BLOCK if i == at else 0) for i in range(x.ndim)]
    x = jnp.pad(x, short, constant_values=fill)
    return x.reshape(*x.shape[:at], -1, BLOCK, *x.shape[at + 1 :])


def flat(blocked: Array, length: int, axis: int) -> Array:
    """The inverse of `blocked`; of its argument, `axis` counts the numbers of a block."""
    at = blocked.ndim + axis
    whole = blocked.reshape(*blocked.shape[: at - 1], -1, *blocked.shape[at + 1 :])
    return jax.lax.slice_in_dim(whole, 0, length, axis=at - 1)


def restored(moments: object) -> object:
    """A tree with every `Blockwise` array in it restored to float32."""

    def is_blockwise(leaf: object) -> bool:
        return isinstance(leaf, Blockwise)

    return jax.tree.map(
        lambda leaf: leaf.restore() if is_blockwise(leaf) else leaf, moments, is_leaf=is_blockwise
    )
