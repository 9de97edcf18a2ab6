"""Quantising a merged weight again, with rounding errors fed back where a sample of its inputs is
known.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.core.calibrate import gptq
from lora_jax.core.matrix import to_matrix
from lora_jax.core.quantize import QuantizedArray, QuantSpec, quantize


def requantize(
    w: Float[Array, "*axes"],
    spec: QuantSpec,
    *,
    kernel_ndim: int = 2,
    in_axes: tuple[int, ...] = (0,),
    moments: Any = None,
) -> QuantizedArray:
    """`quantize(w, spec, ...)`; with `moments`, codes whose outputs are nearer those of `w`
    (`lora_jax.core.calibrate.gptq`).

    Args:
        moments: sum or mean of x xᵀ over a sample of inputs, (*stack, in, in). None rounds to
            nearest.

    Raises:
        ValueError: `moments` has a wrong shape or is not finite; or as `quantize`.
    """
    if moments is None:
        return quantize(w, spec, kernel_ndim=kernel_ndim, in_axes=in_axes)
    matrix = to_matrix(w, kernel_ndim, in_axes).astype(jnp.float32)
    moments = jnp.asarray(moments, jnp.float32)
    needed = (*matrix.shape[:-1], matrix.shape[-2])
    if moments.shape != needed or not bool(jnp.isfinite(moments).all()):
        raise ValueError(
            f"Second moments of the inputs need the shape {needed} and finite values, but came as "
            f"{moments.shape}."
        )
    return gptq(matrix, moments, spec).replace(
        kernel_shape=tuple(w.shape[w.ndim - kernel_ndim :]), in_axes=tuple(in_axes)
    )
