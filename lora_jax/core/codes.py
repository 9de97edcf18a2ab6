"""Codes of matrices under given scales, and matrices of codes: blocks of inputs share a scale."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from lora_jax.core import bit_packing, codebooks, scales
from lora_jax.core.order import unfused
from lora_jax.core.quant_spec import QuantSpec

_CHAIN = 64  # up to so many levels a comparison with each is faster than a search


def encode(
    matrix: Float[Array, "*stack in out"],
    scale: Float[Array, "*stack blocks out"],
    zero: Any,
    spec: QuantSpec,
) -> UInt8[Array, "*stack packed out"]:
    """Packed codes of the levels nearest to a matrix under given float32 scales (and zeros)."""
    format = codebooks.format_named(spec.format)
    block, blocks, _ = block_sizes(matrix.shape[-2], spec.block_size)
    parts = blocked(matrix.astype(jnp.float32), block, blocks)
    if zero is not None:
        parts = parts - zero[..., None, :]

    empty = jnp.inf if format.zero_block == "lowest" else 0.0
    unit = format.limit if format.levels is None and not has_raw_levels(spec) else 1.0
    # A product with the reciprocal, not a quotient: bitsandbytes' arithmetic, also for 8 bits.
    inverse = (1.0 / scale) * np.float32(unit)
    # Asked of the inverse: XLA would restore stored scales again for every weight to compare them.
    inverse = jnp.where(jnp.isinf(inverse), empty, inverse)
    codes = nearest_code(parts * inverse[..., None, :], format, raw=has_raw_levels(spec))
    codes = codes.reshape(*matrix.shape[:-2], blocks * block, -1)[..., : matrix.shape[-2], :]
    return bit_packing.pack(codes, format.bits, fill=format.zero)


@functools.partial(jax.jit, static_argnums=(3, 4), inline=True)
def decode(
    codes: Array, scale: Any, zero: Any, spec: QuantSpec, rows: int
) -> Float[Array, "*stack in out"]:
    """The float32 matrix of packed codes and stored scales."""
    format = codebooks.format_named(spec.format)
    block, blocks, _ = block_sizes(rows, spec.block_size)
    codes = bit_packing.unpack(codes, format.bits, rows)
    raw, out = has_raw_levels(spec), codes.shape[-1]
    if format.levels is None:
        values = codes.astype(jnp.float32) - format.zero
    else:
        values = codebooks.look_up(format.table(1.0 if raw else None), codes)

    spread = functools.partial(_spread, block=block, blocks=blocks)
    weight = spread(scales.load(scale, blocks, out), values, jnp.multiply)
    if format.levels is None and not raw:
        # After the scale, as bitsandbytes does for 8 bits.
        weight = weight * np.float32(1 / format.limit)
    if zero is None:
        return weight
    return spread(scales.load(zero, blocks, out), unfused(weight), jnp.add)


def nearest_code(
    x: Float[Array, "*axes"], format: codebooks.Format, *, raw: bool = False
) -> UInt8[Array, "*axes"]:
    """The code of the level nearest to each number; NaN gets the lowest level.

    With `raw`, levels are in their own unit.
    """
    if format.levels is None:
        low = 0 if format.offset else -format.limit
        integers = jnp.clip(jnp.round(x), low, format.limit).astype(jnp.int32)
        return (integers + format.zero).astype(jnp.uint8)

    codes, thresholds = format.search(1.0 if raw else None)
    if len(codes) <= _CHAIN:
        index = codebooks.bisected(x, thresholds)
    else:
        index = jnp.searchsorted(jnp.asarray(thresholds), x, side="left", method="scan_unrolled")
        index = jnp.where(jnp.isnan(x), 0, index.astype(jnp.uint8))
    if np.array_equal(codes, np.arange(len(codes))):
        return index
    return codebooks.look_up(codes, index)


def has_raw_levels(spec: QuantSpec) -> bool:
    """Whether a scale is of a level of 1 in the format's own unit, not of the largest level."""
    tensor = spec.double and spec.second_level == "tensor"
    return tensor or spec.scale_dtype == "e8m0" or codebooks.format_named(spec.format).offset


def block_sizes(rows: int, block_size: int | None) -> tuple[int, int, int]:
    """Block size, number of blocks and padded number of rows of a matrix with `rows` rows."""
    block = rows if block_size is None else block_size
    blocks = -(-rows // block)
    return block, blocks, blocks * block


def blocked(
    matrix: Float[Array, "*stack in out"], block: int, blocks: int
) -> Float[Array, "*stack blocks block out"]:
    """The rows of a matrix in blocks; a short last one is filled up with its last row."""
    short = block * blocks - matrix.shape[-2]
    if short:
        # The last row again, which changes neither the largest magnitude nor the smallest weight.
        matrix = jnp.pad(matrix, [(0, 0)] * (matrix.ndim - 2) + [(0, short), (0, 0)], mode="edge")
    return matrix.reshape(*matrix.shape[:-2], blocks, block, matrix.shape[-1])


def _spread(per_block: Array, values: Array, combine: Any, *, block: int, blocks: int) -> Array:
    """Values (*stack, in, out) combined with one number for each block of rows."""
    *stack, rows, out = values.shape
    if block * blocks != rows:
        return combine(values, jnp.repeat(per_block, block, axis=-2)[..., :rows, :])
    parts = values.reshape(*stack, blocks, block, out)
    return combine(parts, per_block[..., None, :]).reshape(values.shape)
