"""Blockwise quantised weights: `quantize`, the box that dequantises itself, double quantisation, and honest bytes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, UInt8

from lora_jax.core import codebooks, packing
from lora_jax.core.boxes import Boxed
from lora_jax.core.matrix import from_matrix, to_matrix
from lora_jax.core.paths import flatten

SCALES_PER_BLOCK = 256  # fixed by bitsandbytes: its kernels take no other size of the second level


@dataclass(frozen=True)
class QuantSpec:
    """How a weight is stored.

    format: a name in `lora_jax.core.codebooks.FORMATS`. block_size: weights that share one scale, along the input axis;
    None gives one scale for each output channel. double: the scales are stored in 8 bits, 256 to a block.
    """

    format: str = "nf4"
    block_size: int | None = 64
    double: bool = True

    def __post_init__(self) -> None:
        codebooks.format_named(self.format)
        if self.block_size is not None and (self.block_size < 2 or self.block_size % 2):
            raise ValueError(f"block_size must be an even number of weights or None (one block a column), got {self.block_size!r}.")


class DoubleQuantized(struct.PyTreeNode):
    """Block scales in 8 bits: `dynamic_map[codes] * absmax + offset`, 256 scales to an `absmax`, one `offset` a matrix.

    Scales are laid out output channel by output channel, as bitsandbytes has them.
    """

    codes: UInt8[Array, "*stack n"]
    absmax: Float[Array, "*stack groups"]
    offset: Float[Array, "*stack"]

    def restore(self) -> Float[Array, "*stack n"]:
        """The float32 scales."""
        values = jnp.asarray(codebooks.dynamic_map()).at[self.codes.astype(jnp.int32)].get(mode="promise_in_bounds")
        each = jnp.repeat(self.absmax, SCALES_PER_BLOCK, axis=-1)[..., : values.shape[-1]]
        return values * each + self.offset[..., None]


class QuantizedArray(Boxed):
    """A weight in k-bit codes. Reading it gives the dequantised weight.

    The weight is seen as a matrix (in, out): `in_axes` names which of its axes (stack axes not counted) are inputs.
    `codes` is (*stack, in, out) for 8 bits and (*stack, ceil(in / 2), out) for 4 bits. `scale` is (*stack, blocks, out) in
    float32, or `DoubleQuantized` with n = out * blocks. `kernel_shape` is the weight's shape without stack axes.
    """

    codes: UInt8[Array, "*stack packed out"]
    scale: Float[Array, "*stack blocks out"] | DoubleQuantized
    spec: QuantSpec = struct.field(pytree_node=False)
    kernel_shape: tuple[int, ...] = struct.field(pytree_node=False)
    in_axes: tuple[int, ...] = struct.field(pytree_node=False)
    dtype: Any = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, stack axes first."""
        return (*self.codes.shape[:-2], *self.kernel_shape)

    @property
    def ndim(self) -> int:
        """Number of axes of the weight, stack axes counted."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def matrix(self, dtype: Any = None) -> Float[Array, "*stack in out"]:
        """The dequantised weight as matrices, computed in float32 and rounded once to `dtype` (its own by default)."""
        format = codebooks.format_named(self.spec.format)
        rows, out = math.prod(self.kernel_shape[axis] for axis in self.in_axes), self.codes.shape[-1]
        block, blocks, padded = _blocks(rows, self.spec.block_size)
        codes = packing.unpack4(self.codes, rows) if format.bits == 4 else self.codes
        if format.levels is None:
            values = (codes.astype(jnp.float32) - (format.limit + 1)) * np.float32(1 / format.limit)
        else:
            values = jnp.asarray(format.table()).at[codes.astype(jnp.int32)].get(mode="promise_in_bounds")
        scale = self.scale
        if isinstance(scale, DoubleQuantized):
            flat = scale.restore()
            scale = jnp.swapaxes(flat.reshape(*flat.shape[:-1], out, blocks), -1, -2)
        if padded == rows:
            blocked = values.reshape(*values.shape[:-2], blocks, block, out) * scale[..., :, None, :]
            weight = blocked.reshape(values.shape)
        else:
            weight = values * jnp.repeat(scale, block, axis=-2)[..., :rows, :]
        return weight.astype(self.dtype if dtype is None else dtype)

    def unbox(self) -> Array:
        """The dequantised weight in its own shape and dtype."""
        return from_matrix(self.matrix(), self.kernel_shape, self.in_axes)


def quantize(w: Float[Array, "*axes"], spec: QuantSpec, *, kernel_ndim: int = 2, in_axes: tuple[int, ...] = (0,)) -> QuantizedArray:
    """The k-bit codes and per-block scales whose product is nearest `w`, block by block.

    The last `kernel_ndim` axes of `w` are the weight, seen as a matrix (in, out) whose inputs are `in_axes`; axes before them
    are a stack of weights that are quantised one by one. Blocks run along `in`; each is divided by its largest magnitude and
    rounded to the nearest level of the format (ties as `codebooks.Format` says). A short last block is as if padded with
    zeros. With `spec.double`, the scales themselves are stored in 8 bits, 256 to a block: 0.127 bits a weight, not 0.5.

    Where in % block_size == 0, codes, scales and nested scales of the transposed matrix equal bitsandbytes'.

    Reference: QLoRA, Dettmers et al. 2023, section 3 (arXiv 2305.14314).

    Raises:
        ValueError: `w` has too few axes, is not floating, is empty, or holds a NaN or an infinity (outside jit only).

    >>> quantize(jnp.ones((128, 32)), QuantSpec(double=False)).codes.shape
    (64, 32)
    """
    if w.ndim < kernel_ndim or not 0 < len(in_axes) < kernel_ndim or not w.size:
        raise ValueError(
            f"Cannot quantise a weight of shape {w.shape} with {kernel_ndim} kernel axes, of which {in_axes} are inputs: needed at "
            "least one input and one output axis, none of size 0."
        )
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(f"Cannot quantise a weight of dtype {w.dtype}: needed a floating dtype. Leave it out of the quantisation rules.")
    codes, scale, finite = _quantize_matrix(w, spec, kernel_ndim, in_axes)
    if not isinstance(finite, jax.core.Tracer) and not bool(finite):
        raise ValueError(
            f"Cannot quantise a weight of shape {w.shape}: it holds a NaN or an infinity. Repair the checkpoint, or leave it out."
        )
    return QuantizedArray(
        codes=codes,
        scale=scale,
        spec=spec,
        kernel_shape=tuple(w.shape[w.ndim - kernel_ndim :]),
        in_axes=tuple(in_axes),
        dtype=jnp.dtype(w.dtype),
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _quantize_matrix(w: Array, spec: QuantSpec, kernel_ndim: int, in_axes: tuple[int, ...]) -> tuple[Array, Any, Array]:
    w = to_matrix(w, kernel_ndim, in_axes)
    format = codebooks.format_named(spec.format)
    rows, out = w.shape[-2:]
    block, blocks, padded = _blocks(rows, spec.block_size)
    # bitsandbytes computes in float32 whatever the weight's dtype, and multiplies by the reciprocal.
    wide = jnp.pad(w.astype(jnp.float32), [(0, 0)] * (w.ndim - 2) + [(0, padded - rows), (0, 0)])
    blocked = wide.reshape(*w.shape[:-2], blocks, block, out)
    absmax = jnp.abs(blocked).max(-2)
    if format.levels is None:
        divisor = jnp.where(absmax > 0, absmax, 1.0)[..., None, :]
        codes = jnp.round(blocked * format.limit / divisor).astype(jnp.int32) + (format.limit + 1)
    else:
        codes = _nearest(blocked * (1.0 / absmax)[..., None, :], format)
    codes = codes.astype(jnp.uint8).reshape(wide.shape)[..., :rows, :]
    if format.bits == 4:
        codes = packing.pack4(codes, fill=int(np.abs(format.table()).argmin()))
    scale = _quantize_scales(jnp.swapaxes(absmax, -1, -2).reshape(*w.shape[:-2], -1)) if spec.double else absmax
    return codes, scale, jnp.isfinite(wide).all()


def _nearest(x: Array, format: codebooks.Format) -> Array:
    """Code of the nearest level. NaN (0 times infinity, in a block of zeros) compares false and gets the lowest code."""
    table = format.table()
    if not format.sign_bit:
        order = np.argsort(table, kind="stable")
        return _look_up(order, _count_above(x, codebooks.midpoints(table[order])))
    half = len(table) // 2
    order = np.argsort(table[:half], kind="stable")
    magnitude = _look_up(order, _count_above(jnp.abs(x), codebooks.midpoints(table[:half][order])))
    return magnitude + jnp.where(x < 0, half, 0).astype(jnp.uint8)


def _count_above(x: Array, thresholds: np.ndarray) -> Array:
    """How many sorted thresholds are below x: a search without a gather, one comparison a threshold, all in one pass."""
    count = jnp.zeros(x.shape, jnp.uint8)
    for threshold in thresholds:
        count = count + (x > threshold).astype(jnp.uint8)
    return count


def _look_up(order: np.ndarray, index: Array) -> Array:
    if np.array_equal(order, np.arange(len(order))):
        return index
    return jnp.asarray(order.astype(np.uint8)).at[index.astype(jnp.int32)].get(mode="promise_in_bounds")


def _quantize_scales(scales: Float[Array, "*stack n"]) -> DoubleQuantized:
    n = scales.shape[-1]
    offset = scales.mean(-1)
    centred = scales - offset[..., None]
    groups = -(-n // SCALES_PER_BLOCK)
    grouped = jnp.pad(centred, [(0, 0)] * (centred.ndim - 1) + [(0, groups * SCALES_PER_BLOCK - n)])
    grouped = grouped.reshape(*centred.shape[:-1], groups, SCALES_PER_BLOCK)
    absmax = jnp.abs(grouped).max(-1)
    # All scales equal: every difference is 0 and any positive divisor gives the code of 0.
    unit = grouped * (1.0 / jnp.where(absmax > 0, absmax, 1.0))[..., None]
    codes = jnp.searchsorted(jnp.asarray(codebooks.midpoints(codebooks.dynamic_map())), unit, side="left")
    codes = codes.astype(jnp.uint8).reshape(*centred.shape[:-1], -1)[..., :n]
    return DoubleQuantized(codes=codes, absmax=absmax, offset=offset)


def _blocks(rows: int, block_size: int | None) -> tuple[int, int, int]:
    """Block size, number of blocks and padded number of rows of a matrix with `rows` rows."""
    block = rows if block_size is None else block_size
    blocks = -(-rows // block)
    return block, blocks, blocks * block


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays stored in a tree, boxes counted by what they store."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def bytes_by_path(tree: Mapping[str, Any]) -> dict[str, int]:
    """`bytes_of` every parameter of nested mappings, by path."""
    return {path: bytes_of(leaf) for path, leaf in flatten(tree).items()}
