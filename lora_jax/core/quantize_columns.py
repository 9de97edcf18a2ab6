"""`quantize` of weights on the host, such as views of files, some columns at a time."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lora_jax.core import scales
from lora_jax.core.host import filled, to_device
from lora_jax.core.matrix import to_matrix
from lora_jax.core.quantize import (
    QuantizedArray,
    QuantSpec,
    block_scales,
    check_quantized,
    codes_need_stored,
    encode,
    quantize,
    stored_scales,
)


def quantize_by_columns(
    w: np.ndarray,
    spec: QuantSpec,
    *,
    in_axes: tuple[int, ...] = (0,),
    at_once: int = 1 << 26,
) -> QuantizedArray:
    """`quantize` of one weight on the host in float32, byte for byte, of any floating dtype and in
    any order, such as a view of a file. Some `at_once` weights are dense in float32 at a time.

    Raises, warns: as `quantize`.
    """
    if w.size <= at_once:
        dense = to_device(filled(w.shape, np.float32, [((), w)]))
        return quantize(dense, spec, kernel_ndim=w.ndim, in_axes=in_axes)
    matrix = to_matrix(w, w.ndim, in_axes)
    rows, out = matrix.shape
    # Of equal widths if they can be: each width is a program of its own.
    count = next((n for n in range(-(-w.size // at_once), 64) if out % n == 0), 0)
    step = out // count if count else max(1, at_once // rows)
    cuts = [slice(first, min(first + step, out)) for first in range(0, out, step)]

    def read(cut: slice) -> Array:
        part = matrix[:, cut]
        return to_device(filled(part.shape, np.float32, [((), part)]))

    # Waited for, or those that are read faster than they are quantised are all there at once.
    first = [jax.block_until_ready(_quantize_columns(read(cut), spec)) for cut in cuts]
    scales_, zeros, finite, codes = zip(*first, strict=True)
    scale = jnp.concatenate(scales_, -1)
    zero = None if zeros[0] is None else jnp.concatenate(zeros, -1)
    stored, stored_zero, damaged = stored_scales(scale, zero, spec)
    check_quantized(w.shape, all(map(bool, finite)), damaged)
    if codes_need_stored(spec):
        blocks = scale.shape[-2]
        scale = scales.load(stored, blocks, out)
        zero = None if zero is None else scales.load(stored_zero, blocks, out)
        of = lambda array, cut: None if array is None else array[:, cut]
        codes = [_encode(read(cut), of(scale, cut), of(zero, cut), spec) for cut in cuts]
    return QuantizedArray(
        codes=jnp.concatenate(codes, -1),
        scale=stored,
        zero=stored_zero,
        spec=spec,
        kernel_shape=tuple(w.shape),
        in_axes=tuple(in_axes),
        dtype=jnp.dtype(np.float32),
    )


@functools.partial(jax.jit, static_argnums=1)
def _quantize_columns(
    matrix: Array, spec: QuantSpec
) -> tuple[Array, Array | None, Array, Array | None]:
    """Exact scales and zeros, whether all is finite, and the codes if they are of exact scales."""
    scale, zero = block_scales(matrix, spec)
    codes = None if codes_need_stored(spec) else encode(matrix, scale, zero, spec)
    return scale, zero, jnp.isfinite(matrix).all(), codes


_encode = jax.jit(lambda *given: encode(*given), static_argnums=3)
