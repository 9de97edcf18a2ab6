"""LLM.int8(): a product in 8-bit integers, with input features too large for them in 16 bits.

It rounds activations as well as weights, so it is a function to call, not a box: a weight that is
read through a box must give the same model with and without factored products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lora_jax.core.quantize import QuantizedArray


def int8_matmul(
    x: Float[Array, "t in"], weight: QuantizedArray, *, threshold: float = 6.0
) -> Float[Array, "t out"]:
    """`x @ weight` by vector-wise quantisation: a scale for each row of x and each column of the
    weight.

    Columns of x with a magnitude of `threshold` or more are multiplied in float16 with the
    dequantised weight instead; 0 turns that off. Products are added in int32, and x is rounded to
    float16 first, as bitsandbytes does; the result has x's dtype.

    Reference: LLM.int8(), Dettmers et al. 2022 (arXiv 2208.07339), sections 2 and 3.

    Raises:
        ValueError: the weight is not int8 with one float32 scale for each output channel, or is a
            stack.
    """
    spec = weight.spec
    kind = (spec.format, spec.block_size, spec.double, spec.scale_dtype, spec.rotation)
    if kind != ("int8", None, False, "float32", "none") or weight.codes.ndim != 2:
        raise ValueError(
            "int8_matmul needs a matrix quantised with QuantSpec('int8', None, double=False), got "
            f"{spec} of shape {weight.shape}."
        )

    half = x.astype(jnp.float16)
    outlier = jnp.abs(half) >= threshold if threshold > 0 else jnp.zeros(half.shape, bool)
    column = outlier.any(0)

    calm = jnp.where(outlier, 0, half).astype(jnp.float32)
    row = jnp.abs(calm).max(1)
    unit = calm * jnp.where(row > 0, (1.0 / row) * 127.0, 0.0)[:, None]
    integers = jnp.where(column, 0, jnp.round(unit)).astype(jnp.int8)
    kernel = (weight.codes.astype(jnp.int16) - 128).astype(jnp.int8)
    product = jax.lax.dot_general(
        integers, kernel, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
    )
    y = product.astype(jnp.float32) * (row[:, None] * weight.scale) * np.float32(1 / 127**2)

    large, kernel = jnp.where(column, half, 0), weight.matrix(jnp.float16)
    return (y + jnp.dot(large, kernel, preferred_element_type=jnp.float32)).astype(x.dtype)
