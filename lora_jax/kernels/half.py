"""Ways around XLA's needless float32 copies of 16-bit arrays on a CPU, each with its jax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from lora_jax.core.platform import platform

# Since jax 0.12 a slice and a gather of 16 bits are what they say. Before, XLA on a CPU copied all
# of the array to float32 first; of integers it makes a copy of half that size.
_CUTS_COPY = jax.__version_info__ < (0, 12)


def contracted(x: Array, w: Array, axis: int) -> Array:
    """The product of rows of x with `axis` of w, in x's dtype.

    XLA on a CPU (jax 0.10) first copies 16-bit operands to float32 unless the result is asked for
    in float32: three times as long, and a float32 copy of the weight.
    """
    wide = jnp.float32 if x.dtype.itemsize == 2 and platform() == "cpu" else None
    y = jax.lax.dot_general(x, w, (((1,), (axis,)), ((), ())), preferred_element_type=wide)
    return y.astype(x.dtype)


def to_cut(x: Shaped[Array, "*axes"]) -> Shaped[Array, "*axes"]:
    """The array in a form to cut and gather from without a float32 copy; `floats` reads parts."""
    short = _CUTS_COPY and x.dtype.itemsize == 2
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if short else x


def floats(part: Shaped[Array, "*axes"], dtype: Any) -> Shaped[Array, "*axes"]:
    """A part of what `to_cut` gave, of an array of this dtype."""
    return part if part.dtype == dtype else jax.lax.bitcast_convert_type(part, dtype)
