"""Quantising a weight whose rounding errors are fed back, so that its products with a sample of inputs change least."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lora_jax.core import codebooks, packing
from lora_jax.core.matrix import to_matrix
from lora_jax.core.quantize import QuantizedArray, QuantSpec, quantize

_DAMPING = 0.01  # of the mean of the diagonal, as in GPTQ: inputs that never vary must not divide by 0


def requantize(
    w: Float[Array, "*axes"], spec: QuantSpec, *, kernel_ndim: int = 2, in_axes: tuple[int, ...] = (0,), moments: Any = None
) -> QuantizedArray:
    """`quantize(w, spec, ...)`; with `moments`, the same scales and other codes, whose outputs are nearer those of `w`.

    Row by row (an input each), weights go to their nearest levels, and what that changes in the outputs is taken out of the
    rows that follow: each gets the error times its regression on the row just rounded. Scales stay those of plain rounding.

    Reference: GPTQ, Frantar et al. 2022 (arXiv 2210.17323), section 3.

    Args:
        moments: sum or mean of x xᵀ over a sample of inputs, (*stack, in, in). None rounds to nearest.

    Raises:
        ValueError: `moments` has a wrong shape or is not finite, or the format has neither 4 nor 8 bits; or as `quantize`.
    """
    plain = quantize(w, spec, kernel_ndim=kernel_ndim, in_axes=in_axes)
    if moments is None:
        return plain
    matrix = to_matrix(w, kernel_ndim, in_axes).astype(jnp.float32)
    moments = jnp.asarray(moments, jnp.float32)
    needed = (*matrix.shape[:-1], matrix.shape[-2])
    if moments.shape != needed or not bool(jnp.isfinite(moments).all()):
        raise ValueError(f"Second moments of the inputs need the shape {needed} and finite values, but came as {moments.shape}.")
    values, codes = _levels(spec.format)
    # The scale of every weight, read off a weight whose codes all stand for the level 1.
    one = int(codes[np.argmax(values)])
    bits = codebooks.format_named(spec.format).bits
    if bits not in (4, 8):
        raise ValueError(f"Errors are fed back in 4-bit and 8-bit formats, and {spec.format!r} has {bits} bits. Leave the moments out.")
    four = bits == 4
    filled = jnp.full(matrix.shape, one, jnp.uint8)
    scale = plain.replace(codes=packing.pack4(filled, fill=one) if four else filled).matrix(jnp.float32)
    flat = lambda x: x.reshape(-1, *x.shape[-2:])  # noqa: E731
    chosen = jax.lax.map(lambda layer: _fed_back(*layer, jnp.asarray(values)), (flat(matrix), flat(scale), flat(moments)))
    new = jnp.asarray(codes)[chosen].reshape(matrix.shape)
    zero = int(codes[np.argmin(np.abs(values))])
    return plain.replace(codes=packing.pack4(new, fill=zero) if four else new)


def _levels(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of a format's levels, and their codes; of a linear format, the symmetric ones."""
    format = codebooks.format_named(name)
    first = 0 if format.levels is not None else 1
    return format.table()[first:], np.arange(first, 2**format.bits, dtype=np.uint8)


def _fed_back(w: Float[Array, "n out"], scale: Float[Array, "n out"], moments: Float[Array, "n n"], levels: Float[Array, " k"]) -> Array:
    """The index of every weight's level."""
    n = w.shape[0]
    damped = moments + (_DAMPING * jnp.trace(moments) / n + 1e-30) * jnp.eye(n)
    # The rows of the upper Cholesky factor of the inverse hold the regressions of later inputs on earlier ones.
    upper = jnp.linalg.cholesky(jnp.linalg.inv(damped)).T
    unit = 1 / jnp.where(scale > 0, scale, 1.0)

    def step(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, index = state
        row = left[i]
        nearest = jnp.abs((row * unit[i])[:, None] - levels).argmin(-1)
        error = (row - levels[nearest] * scale[i]) / upper[i, i]
        weight = jnp.where(jnp.arange(n) > i, upper[i], 0.0)
        return left - weight[:, None] * error, index.at[i].set(nearest)

    return jax.lax.fori_loop(0, n, step, (w, jnp.zeros(w.shape, jnp.int32)))[1]
