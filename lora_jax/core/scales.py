"""The scales of blocks, as stored: float32, bfloat16, powers of two, or 8 bits (double)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, UInt8

from lora_jax.core import codebooks
from lora_jax.core.blockwise import BLOCK, blocked, flat, nearest_dynamic
from lora_jax.core.order import computed_once, unfused

SCALE_DTYPES = ("float32", "bfloat16", "e8m0")
SECOND_LEVELS = ("mean", "log", "tensor")
_E4M3_TOP = 448.0


class DoubleQuantized(struct.PyTreeNode):
    """Numbers in 8 bits, 256 of them to a group.

    `level` 'mean' is QLoRA's: `dynamic_map[codes] * absmax + offset`, with one `offset` a matrix,
    the mean of its numbers. It fails where one number is very large: 1000 times its neighbours
    costs them 27 %, 10,000 times turns their signs. `level` 'log' holds logarithms of positive
    numbers: `exp2(offset + (codes - 1) * absmax)` with one `offset` a group, and code 0 for the
    number 0. Its relative error is at most `2**(absmax / 2) - 1`, whatever else is in the group.
    `level` 'tensor' is NVFP4's: `codes` are E4M3 numbers and `absmax` is one a matrix that they are
    multiplied with; there is no offset (0).

    Numbers are laid out output channel by output channel, as bitsandbytes has them.
    """

    codes: UInt8[Array, "*stack n"]
    absmax: Float[Array, "*stack groups"]
    offset: Float[Array, "*rest"]
    level: str = struct.field(pytree_node=False, default="mean")

    def restore(self) -> Float[Array, "*stack n"]:
        """The float32 numbers."""
        n = self.codes.shape[-1]
        if self.level == "tensor":
            numbers = jax.lax.bitcast_convert_type(self.codes, jnp.float8_e4m3fn)
            return unfused(numbers.astype(jnp.float32) * self.absmax)
        step = jnp.repeat(self.absmax, BLOCK, axis=-1)[..., :n]
        if self.level == "log":
            low = jnp.repeat(self.offset, BLOCK, axis=-1)[..., :n]
            numbers = jnp.exp2(low + unfused((self.codes.astype(jnp.float32) - 1) * step))
            return jnp.where(self.codes == 0, 0.0, numbers)
        moved = codebooks.look_up(codebooks.dynamic_map(), self.codes) * step
        return unfused(moved) + self.offset[..., None]


def store(
    scale: Float[Array, "*stack blocks out"],
    *,
    double: bool,
    dtype: str,
    level: str,
    top: float = 1.0,
) -> Any:
    """Scales (largest magnitudes, blocks along axis -2) in the form that is kept; `load` reads it.

    'e8m0' rounds as MX has it, to the power of two by which the largest weight has the exponent of
    the largest level, `top`; second level 'tensor' keeps what a level of 1 stands for.
    """
    if double:
        numbers = jnp.swapaxes(scale, -1, -2).reshape(*scale.shape[:-2], -1)
        if level == "tensor":
            return quantize_by_tensor(numbers, top)
        return quantize_scales(numbers) if level == "mean" else quantize_logs(numbers)
    if dtype == "e8m0":
        exponent = jnp.frexp(scale)[1] - 1 - int(np.floor(np.log2(top)))
        return jnp.where(scale > 0, jnp.clip(exponent + 127, 1, 254), 0).astype(jnp.uint8)
    return scale.astype(dtype)


def load(stored: Any, blocks: int, out: int) -> Float[Array, "*stack blocks out"]:
    """The float32 numbers that `store` was given, as it kept them."""
    if isinstance(stored, DoubleQuantized):
        numbers = stored.restore()
        scale = jnp.swapaxes(numbers.reshape(*numbers.shape[:-1], out, blocks), -1, -2)
        # Without the barrier XLA computes each scale anew for every weight of its block, and
        # reading takes twice as long.
        return jax.lax.optimization_barrier(computed_once(scale))
    if stored.dtype == jnp.uint8:
        # Bits of the exponent: exactly a power of two, which exp2 does not promise.
        return jax.lax.bitcast_convert_type(stored.astype(jnp.uint32) << 23, jnp.float32)
    return stored.astype(jnp.float32)


def quantize_scales(scales: Float[Array, "*stack n"]) -> DoubleQuantized:
    """QLoRA's double quantisation (Dettmers et al. 2023, section 3): less the mean, then 8 bits.

    Every byte as bitsandbytes on CUDA has it; ties of the map go to the even code, and a group of
    equal scales has code 0.
    """
    offset = mean(scales)
    grouped = blocked(scales - offset[..., None], -1)
    absmax = jnp.abs(grouped).max(-1)
    unit = grouped * jnp.where(absmax > 0, 1.0 / absmax, jnp.nan)[..., None]
    codes = jnp.where(jnp.isnan(unit), 0, nearest_dynamic(unit, signed=True, ties="even"))
    return DoubleQuantized(codes=flat(codes, scales.shape[-1], -1), absmax=absmax, offset=offset)


def quantize_by_tensor(largest: Float[Array, "*stack n"], top: float) -> DoubleQuantized:
    """Largest magnitudes over the largest level, `top`, in E4M3, under one float32 number a matrix by which the largest is E4M3's largest
    (NVFP4, NVIDIA 2025, arXiv 2509.25149, section 2).
    """
    whole = largest.max(-1)
    # XLA divides by a constant by multiplying with its reciprocal. No number has 128 bits.
    bits = jax.lax.population_count(jax.lax.bitcast_convert_type(whole, jnp.uint32))
    tensor = whole / (jnp.float32(top * _E4M3_TOP) + (bits >> 7).astype(jnp.float32))
    unit = largest / (top * jnp.where(tensor > 0, tensor, 1.0))[..., None]
    codes = jnp.minimum(unit, _E4M3_TOP).astype(jnp.float8_e4m3fn)
    codes = jax.lax.bitcast_convert_type(codes, jnp.uint8)
    return DoubleQuantized(
        codes=codes, absmax=tensor[..., None], offset=jnp.zeros_like(tensor), level="tensor"
    )


def quantize_logs(scales: Float[Array, "*stack n"]) -> DoubleQuantized:
    """Logarithms of the scales on 255 points from each group's smallest to its largest."""
    logs = jnp.log2(jnp.where(scales > 0, scales, jnp.nan))
    grouped = blocked(logs, -1, jnp.nan)
    none = jnp.isnan(grouped).all(-1)
    low = jnp.where(none, 0.0, jnp.where(jnp.isnan(grouped), jnp.inf, grouped).min(-1))
    high = jnp.where(none, 0.0, jnp.where(jnp.isnan(grouped), -jnp.inf, grouped).max(-1))

    step = (high - low) / 254
    codes = 1 + jnp.round((grouped - low[..., None]) / jnp.where(step > 0, step, 1.0)[..., None])
    codes = jnp.where(jnp.isnan(grouped), 0, jnp.clip(codes, 1, 255)).astype(jnp.uint8)
    codes = flat(codes, scales.shape[-1], -1)
    return DoubleQuantized(codes=codes, absmax=step, offset=low, level="log")


@jax.jit
def mean(x: Float[Array, "*stack n"]) -> Float[Array, "*stack"]:
    """The mean along the last axis, added in torch's order, to be equal to the last bit.

    torch sums a contiguous float32 row on a processor in 8 lanes of 4 accumulators each, sixteen at
    a time, then sixteens of those (aten/native/cpu/SumKernel.cpp, one thread). Above 32,768 numbers
    torch's own sum depends on its number of threads.
    """
    n = x.shape[-1]
    lanes = 8 if n >= 8 else 1
    vectors, fours = n // lanes, n // lanes // 4
    parts = jnp.moveaxis(x[..., : fours * 4 * lanes].reshape(*x.shape[:-1], fours, 4, lanes), -3, 0)
    sums = _cascade(parts)

    first = sums[..., 0, :]
    for index in range(fours * 4, vectors):
        first = first + x[..., index * lanes : (index + 1) * lanes]
    for index in range(1, 4):
        first = first + sums[..., index, :]

    rest = [x[..., index] for index in range(vectors * lanes, n)]
    total = _sum_in_order(jnp.stack([*rest, *(first[..., lane] for lane in range(lanes))]))
    # XLA divides by a constant, and a stack of numbers by any one number, by multiplying with its
    # reciprocal. No number has 128 bits, which it does not know.
    bits = jax.lax.population_count(jax.lax.bitcast_convert_type(total, jnp.uint32))
    return total / (jnp.float32(n) + (bits >> 7).astype(jnp.float32))


def _cascade(rows: Array, levels: int = 4) -> Array:
    """The sum along the first axis in torch's order: of sixteen, of sixteen of those, and so on."""
    step = 2 ** max(4, (len(rows) - 1).bit_length() // levels) if len(rows) else 16
    total = None
    for level in range(levels):
        whole = len(rows) // step * step if level < levels - 1 else 0
        rest = _sum_in_order(rows[whole:])
        total = rest if total is None else total + rest
        chunks = jnp.moveaxis(rows[:whole].reshape(whole // step, step, *rows.shape[1:]), 1, 0)
        rows = _sum_in_order(chunks)
    return total


def _sum_in_order(rows: Array) -> Array:
    total = jnp.zeros(rows.shape[1:], jnp.float32)
    for row in rows:
        total = total + row
    return total
