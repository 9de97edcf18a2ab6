"""Arrays in 8 bits, 256 numbers to a block: how the moments of an optimiser are kept small."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, UInt8

from lora_jax.core import codebooks

BLOCK = 256  # bitsandbytes' size of a block of optimiser state


class Blockwise(struct.PyTreeNode):
    """`map[codes] * absmax`, with one `absmax` for every 256 numbers along one axis; the last block of a row may be short.

    `codes` has the array's shape, `absmax` too but for `axis`, which counts blocks. The axis is negative: axes are counted from the
    right, so stack axes may come and go, and what is cut or padded along another axis leaves every block as it is. `signed`
    says which dynamic map the codes are of: the one with both signs, or the one from 0 up that has a digit more.
    """

    codes: UInt8[Array, "*axes"]
    absmax: Float[Array, "*blocks"]
    axis: int = struct.field(pytree_node=False)
    signed: bool = struct.field(pytree_node=False)

    def restore(self) -> Float[Array, "*axes"]:
        """The float32 numbers."""
        table = jnp.asarray(codebooks.dynamic_map(self.signed))
        values = _blocked(table.at[self.codes.astype(jnp.int32)].get(mode="promise_in_bounds"), self.axis)
        values = values * jnp.moveaxis(self.absmax, self.axis, -1)[..., None]
        return jnp.moveaxis(_flat(values, self.codes.shape[self.axis]), -1, self.axis)


def quantize_blocks(x: Float[Array, "*axes"], *, axis: int, signed: bool) -> Blockwise:
    """The 8-bit codes nearest to `x`, each block divided by its largest magnitude; ties go to the lower level.

    Without a sign, what is above 0 stays above 0: it takes the lowest level that is. (The nearest level would be 0 below 1.6e-7
    of the largest, as on bitsandbytes' CUDA backend; its CPU backend looks levels up in a table of cells 3e-5 wide, and never takes 0.)

    Reference: 8-bit Optimizers via Block-wise Quantization, Dettmers et al. 2022, section 2 (arXiv 2110.02861).

    >>> quantize_blocks(jnp.ones((600, 8)), axis=-2, signed=True).absmax.shape
    (3, 8)
    """
    blocked = _blocked(x.astype(jnp.float32), axis)
    absmax = jnp.abs(blocked).max(-1)
    unit = blocked * jnp.where(absmax > 0, 1.0 / absmax, 0.0)[..., None]
    thresholds = jnp.asarray(codebooks.midpoints(codebooks.dynamic_map(signed)))
    codes = jnp.searchsorted(thresholds, unit, side="left", method="scan_unrolled").astype(jnp.uint8)
    if not signed:
        # A second moment of 0 beside a first that is not would make a step of 1 / eps.
        codes = jnp.where(unit > 0, jnp.maximum(codes, 1), codes)
    codes = jnp.moveaxis(_flat(codes, x.shape[axis]), -1, axis)
    return Blockwise(codes=codes, absmax=jnp.moveaxis(absmax, -1, axis), axis=axis, signed=signed)


def _blocked(x: Array, axis: int) -> Array:
    """(..., blocks, 256) of an array whose `axis` is cut into blocks, the last one filled with zeros."""
    x = jnp.moveaxis(x, axis, -1)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % BLOCK)])
    return x.reshape(*x.shape[:-1], -1, BLOCK)


def _flat(blocked: Array, length: int) -> Array:
    return blocked.reshape(*blocked.shape[:-2], -1)[..., :length]


def restored(moments: object) -> object:
    """A tree with every `Blockwise` array in it restored to float32."""
    return jax.tree.map(lambda m: m.restore() if isinstance(m, Blockwise) else m, moments, is_leaf=lambda m: isinstance(m, Blockwise))
