"""`quantize` of weights on the host, such as views of files, some columns at a time."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lora_jax.core import scales
from lora_jax.core.codes import encode
from lora_jax.core.fits import block_scales
from lora_jax.core.host import Filling, filled, to_device
from lora_jax.core.matrix import to_matrix
from lora_jax.core.quant_spec import QuantSpec
from lora_jax.core.quantize import (
    QuantizedArray,
    check_quantized,
    codes_need_stored,
    in_its_basis,
    quantize,
    stored_scales,
)

AT_ONCE = 1 << 26  # weights that are dense in float32 together: 268 MB


def quantize_by_columns(
    w: np.ndarray,
    spec: QuantSpec,
    *,
    in_axes: tuple[int, ...] = (0,),
    at_once: int = AT_ONCE,
) -> QuantizedArray:
    """`quantize` of one weight on the host in float32, byte for byte, of any floating dtype and in
    any order, such as a view of a file. Some `at_once` weights are dense in float32 at a time.

    Raises, warns: as `quantize`.
    """
    if w.size <= at_once:
        dense = to_device(filled(w.shape, np.float32, [((), w)]))
        return quantize(dense, spec, kernel_ndim=w.ndim, in_axes=in_axes)
    matrix = to_matrix(w, w.ndim, in_axes)
    out = matrix.shape[1]
    step = columns_at_once(*matrix.shape, at_once)
    cuts = [slice(first, min(first + step, out)) for first in range(0, out, step)]

    def read(cut: slice) -> Array:
        part = matrix[:, cut]
        return _in_its_basis(to_device(filled(part.shape, np.float32, [((), part)])), spec)

    kept: list[Any] = []
    codes: Filling | None = None
    for cut in cuts:
        # Waited for, or those that are read faster than they are quantised are all there at once.
        *of_scales, part = jax.block_until_ready(quantized_columns(read(cut), spec))
        kept.append(of_scales)
        codes = _put(codes, part, cut, out)
    scale, zero = (
        None if parts[0] is None else jnp.concatenate(parts, -1) for parts in list(zip(*kept))[:2]
    )
    stored, stored_zero, damaged = stored_scales(scale, zero, spec)
    check_quantized(w.shape, all(bool(finite) for *_, finite in kept), damaged)
    if codes is None:
        blocks = scale.shape[-2]
        scale = scales.load(stored, blocks, out)
        zero = None if zero is None else scales.load(stored_zero, blocks, out)
        of = lambda array, cut: None if array is None else array[:, cut]
        for cut in cuts:
            part = _encode(read(cut), of(scale, cut), of(zero, cut), spec)
            codes = _put(codes, part, cut, out)
    return QuantizedArray(
        codes=codes.done(),
        scale=stored,
        zero=stored_zero,
        spec=spec,
        kernel_shape=tuple(w.shape),
        in_axes=tuple(in_axes),
        dtype=jnp.dtype(np.float32),
    )


def _put(codes: Filling | None, part: Array | None, cut: slice, out: int) -> Filling | None:
    """Puts the codes of some columns, if there are any, in their place among those of all."""
    if part is not None:
        codes = codes or Filling((part.shape[0], out), part.dtype)
        codes.put((), part, column=cut.start)
    return codes


def columns_at_once(rows: int, out: int, at_once: int = AT_ONCE) -> int:
    """How many columns of a matrix are dense at a time: of equal widths if they can be, as each width
    is a program of its own.
    """
    least = -(-rows * out // at_once)
    count = next((n for n in range(least, 2 * least + 1) if out % n == 0), None)
    return max(1, at_once // rows) if count is None else out // count


@functools.partial(jax.jit, static_argnums=1)
def quantized_columns(
    matrix: Array, spec: QuantSpec
) -> tuple[Array, Array | None, Array, Array | None]:
    """Exact scales and zeros, whether all is finite, and the codes if they are of exact scales."""
    scale, zero = block_scales(matrix, spec)
    codes = None if codes_need_stored(spec) else encode(matrix, scale, zero, spec)
    return scale, zero, jnp.isfinite(matrix).all(), codes


_in_its_basis = jax.jit(in_its_basis, static_argnums=1)
_encode = jax.jit(lambda *given: encode(*given), static_argnums=3)
