"""When a program computes something: after what it need not wait for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


@jax.custom_batching.custom_vmap
def zero_after(x: Array) -> UInt8[Array, ""]:
    """0, there once `x` is: what it is added to waits for `x`.

    By a way that no compiler sees through before it has put the program in order: no number has 128
    bits. `optimization_barrier` would say it better, and XLA drops it on a CPU before it orders the
    program.
    """
    first = x[(0,) * x.ndim]
    bits = jax.lax.bitcast_convert_type(first, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return (jax.lax.population_count(bits) >> 7).astype(jnp.uint8)


@zero_after.def_vmap
def _zero_after_all(size: int, batched: list[bool], x: Array) -> tuple[UInt8[Array, ""], bool]:
    del size, batched  # `x` is: nothing else could be.
    # One 0 for all: with one each, vmap would dequantise a shared weight for every entry.
    return zero_after(x[0]), False


def unfused(product: Array) -> Array:
    """`product`, which no compiler fuses with a sum that it goes into: a fused multiply-add rounds
    once, two operations twice, and which of them is taken differs from program to program.

    Every finite number is within these bounds, but a compiler cannot leave them out for an infinite
    one.
    """
    top = jnp.finfo(product.dtype).max
    return jnp.clip(product, -top, top)


def computed_once(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """`x`, which XLA does not compute anew for each of its readers, as it does with what is cheap,
    whatever barrier stands there, on a CPU: a quotient counts as dear. The divisor is 1, as no
    number has 128 bits.
    """
    bits = jax.lax.population_count(jax.lax.bitcast_convert_type(x, jnp.uint32))
    return x / (1 + (bits >> 7).astype(jnp.float32))
