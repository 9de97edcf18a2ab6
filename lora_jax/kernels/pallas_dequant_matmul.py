"""`x @ W` and `g @ Wᵀ` for a W in 4 or 8 bits, as GPU kernels that never write the dense W.

They are written in Pallas and lowered by Triton.

A program of the grid makes one tile of the result. It walks along the dimension that is summed,
reads a tile of codes, turns it into weights in registers, and multiplies. Sizes that tiles do not
divide are masked.

A byte of codes holds one row of W (8 bits) or two (4 bits: the even row in its high half). So
activations are taken apart by row parity before the kernel, and put together after it: each
half-byte then meets a tile of its own.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from lora_jax.core import codebooks, scales
from lora_jax.core.codes import block_sizes, has_raw_levels
from lora_jax.core.quantize import QuantizedArray

TOKENS, ROWS, COLUMNS = 32, 32, 64  # of a tile: powers of two, as Triton needs; ROWS counts bytes


def why_not(weight: QuantizedArray) -> str | None:
    """What keeps these kernels from reading a weight; None if they can."""
    format = codebooks.format_named(weight.spec.format)
    if format.bits not in (4, 8):
        return f"format {format.name!r} has {format.bits} bits, and the kernels read 4 or 8"
    if weight.zero is not None:
        return f"blocks of {weight.spec} have an offset"
    if weight.in_scale is not None:
        return "the weight has a scale for each input (activation-aware quantisation)"
    if weight.spec.rotation != "none":
        return "the weight has rotated and scaled inputs"
    if weight.codes.ndim != 2:
        return f"the weight is a stack of shape {weight.shape}"
    return None


def dequant_matmul(
    x: Float[Array, "t in"], weight: QuantizedArray, *, interpret: bool = False
) -> Float[Array, "t out"]:
    """`x @ weight` in x's dtype, sums in float32; weights are rounded once, as `matrix` does."""
    tokens, columns = x.shape[0], weight.codes.shape[1]
    parts = _parts(weight)
    x = jnp.pad(x, [(0, 0), (0, parts * weight.codes.shape[0] - x.shape[1])])
    x = x.reshape(tokens, -1, parts).transpose(2, 0, 1)
    grid = (pl.cdiv(tokens, TOKENS), pl.cdiv(columns, COLUMNS))
    return _call(_forward_kernel, x, weight, (tokens, columns), grid, interpret)


def dequant_matmul_transposed(
    g: Float[Array, "t out"], weight: QuantizedArray, *, interpret: bool = False
) -> Float[Array, "t in"]:
    """`g @ weightᵀ` in g's dtype, otherwise as `dequant_matmul`: its gradient with respect to x."""
    tokens, rows = g.shape[0], weight.codes.shape[0]
    grid = (pl.cdiv(tokens, TOKENS), pl.cdiv(rows, ROWS))
    dx = _call(_backward_kernel, g, weight, (_parts(weight), tokens, rows), grid, interpret)
    return dx.transpose(1, 2, 0).reshape(tokens, -1)[:, : weight.rows]


def _parts(weight: QuantizedArray) -> int:
    """Rows of the weight that share a byte."""
    return 8 // codebooks.format_named(weight.spec.format).bits


def _call(
    kernel: Any,
    x: Array,
    weight: QuantizedArray,
    shape: tuple[int, ...],
    grid: tuple[int, int],
    interpret: bool,
) -> Array:
    block, blocks, _ = block_sizes(weight.rows, weight.spec.block_size)
    absmax = scales.load(weight.scale, blocks, weight.codes.shape[1])
    levels, last = _levels(weight)
    return pl.pallas_call(
        functools.partial(kernel, parts=_parts(weight), block=block, last=last),
        out_shape=jax.ShapeDtypeStruct(shape, x.dtype),
        grid=grid,
        interpret=interpret,
        # For the interpreter too: they also say which of Pallas' compilers is meant.
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        name=kernel.__name__.strip("_"),
    )(x, weight.codes, absmax, levels)


def _levels(weight: QuantizedArray) -> tuple[Float[Array, " codes"], float]:
    """Each code's number before it is scaled, and what multiplies it after, rounded as `decode`."""
    format, raw = codebooks.format_named(weight.spec.format), has_raw_levels(weight.spec)
    if format.levels is not None:
        return jnp.asarray(format.table(1.0 if raw else None)), 1.0
    integers = jnp.arange(2**format.bits, dtype=jnp.float32) - format.zero
    return integers, 1.0 if raw else float(np.float32(1 / format.limit))


def _forward_kernel(
    x_ref: Any,
    codes_ref: Any,
    absmax_ref: Any,
    levels_ref: Any,
    y_ref: Any,
    *,
    parts: int,
    block: int,
    last: float,
) -> None:
    """y[t, o] is the sum over bytes p and their parts j of x[j, t, p] * W[j, p, o]."""
    t, t_in = _span(pl.program_id(0), TOKENS, y_ref.shape[0])
    o, o_in = _span(pl.program_id(1), COLUMNS, y_ref.shape[1])

    def add(step: Any, total: Array) -> Array:
        p, p_in = _span(step, ROWS, codes_ref.shape[0])
        tiles = _weight_tiles(
            codes_ref, absmax_ref, levels_ref, p, p_in, o, o_in, parts, block, last, x_ref.dtype
        )
        for part, tile in enumerate(tiles):
            x = triton.load(
                x_ref.at[part, t[:, None], p[None, :]],
                mask=t_in[:, None] & p_in[None, :],
                other=0.0,
            )
            total += _dot(x, tile)
        return total

    total = jax.lax.fori_loop(
        0, pl.cdiv(codes_ref.shape[0], ROWS), add, jnp.zeros((TOKENS, COLUMNS), jnp.float32)
    )
    triton.store(
        y_ref.at[t[:, None], o[None, :]],
        total.astype(y_ref.dtype),
        mask=t_in[:, None] & o_in[None, :],
    )


def _backward_kernel(
    g_ref: Any,
    codes_ref: Any,
    absmax_ref: Any,
    levels_ref: Any,
    dx_ref: Any,
    *,
    parts: int,
    block: int,
    last: float,
) -> None:
    """dx[j, t, p] is the sum over outputs o of g[t, o] * W[j, p, o]."""
    t, t_in = _span(pl.program_id(0), TOKENS, g_ref.shape[0])
    p, p_in = _span(pl.program_id(1), ROWS, codes_ref.shape[0])

    def add(step: Any, totals: tuple[Array, ...]) -> tuple[Array, ...]:
        o, o_in = _span(step, COLUMNS, codes_ref.shape[1])
        tiles = _weight_tiles(
            codes_ref, absmax_ref, levels_ref, p, p_in, o, o_in, parts, block, last, g_ref.dtype
        )
        g = triton.load(
            g_ref.at[t[:, None], o[None, :]], mask=t_in[:, None] & o_in[None, :], other=0.0
        )
        return tuple(total + _dot(g, tile, transposed=True) for total, tile in zip(totals, tiles))

    zeros = tuple(jnp.zeros((TOKENS, ROWS), jnp.float32) for _ in range(parts))
    totals = jax.lax.fori_loop(0, pl.cdiv(codes_ref.shape[1], COLUMNS), add, zeros)
    for part, total in enumerate(totals):
        triton.store(
            dx_ref.at[part, t[:, None], p[None, :]],
            total.astype(dx_ref.dtype),
            mask=t_in[:, None] & p_in[None, :],
        )


def _span(tile: Any, size: int, whole: int) -> tuple[Array, Array]:
    """The indices of a tile, and which of them exist."""
    index = tile * size + jnp.arange(size)
    return index, index < whole


def _weight_tiles(
    codes_ref: Any,
    absmax_ref: Any,
    levels_ref: Any,
    p: Array,
    p_in: Array,
    o: Array,
    o_in: Array,
    parts: int,
    block: int,
    last: float,
    dtype: Any,
) -> list[Float[Array, "rows columns"]]:
    """The weights at bytes `p` and columns `o` (else 0), a tile for each row of the bytes."""
    mask = p_in[:, None] & o_in[None, :]
    codes = triton.load(codes_ref.at[p[:, None], o[None, :]], mask=mask, other=0).astype(jnp.int32)
    tiles = []
    for part in range(parts):
        code = (codes >> (4 * (1 - part))) & 15 if parts == 2 else codes
        # A byte's second row may be past the end, where its activations are 0: any scale will do.
        at = jnp.minimum((p * parts + part) // block, absmax_ref.shape[0] - 1)
        absmax = triton.load(absmax_ref.at[at[:, None], o[None, :]], mask=mask, other=0.0)
        weight = triton.load(levels_ref.at[code]) * absmax
        tiles.append((weight if last == 1.0 else weight * last).astype(dtype))
    return tiles


def _dot(x: Array, w: Array, transposed: bool = False) -> Array:
    # Without it, float32 products would be rounded to 10 bits (TF32).
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return triton.dot(x, w, trans_b=transposed, precision=precision)
