"""`x @ W` of a frozen W and `((x @ a) * scale) @ b`, whose backward passes keep what is small.

Plain autodiff keeps the dequantised weight for the backward pass, which undoes the memory saving of
quantisation, and forms the gradient of `a` by transposing the large activation, which makes a
training step on a CPU about twice as slow.

A compiler that is left alone undoes the saving in two more ways: it dequantises all layers of an
unrolled model before the first of them runs, and takes the dequantising out of a loop over tokens.
So codes are made to wait for the input that they multiply.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.core.hadamard import rotated_inputs
from lora_jax.core.mesh import Placed
from lora_jax.core.order import zero_after
from lora_jax.core.quantize import QuantizedArray
from lora_jax.core.rounded import RoundedSum
from lora_jax.kernels.choice import kernel_for
from lora_jax.kernels.half import contracted


def _matrix(weight: Any, rows: int, x: Float[Array, "t n"]) -> Float[Array, "in out"]:
    """A frozen weight as a (rows, out) matrix of x's dtype, dequantised once `x` is there."""
    if isinstance(weight, QuantizedArray):
        return weight.replace(codes=_after(x, weight)).matrix(x.dtype)
    dense = weight.unbox() if isinstance(weight, Placed) else weight
    return dense.reshape(rows, -1).astype(x.dtype)


def _stored(weight: Any, x: Array) -> Any:
    """The weight as it is stored; a sum that is rounded is added up once `x` is there."""
    if not isinstance(weight, RoundedSum):
        return weight
    base = weight.base.replace(codes=_after(x, weight.base))
    # The dense update waits as well: with codes that wait alone, those of all layers are made first.
    zero = zero_after(x) if base.cut is None else 0
    terms = tuple((a + jnp.asarray(zero, a.dtype), b) for a, b in weight.terms)
    return weight.replace(base=base, terms=terms).merged()


def _after(x: Array, weight: QuantizedArray) -> Array:
    """The weight's codes, there once `x` is."""
    if weight.cut is None:
        return weight.codes + zero_after(x)
    # One number of x lies on one device, and would be sent to all for every product.
    return jax.lax.optimization_barrier((weight.codes, x))[0]


@jax.custom_vjp
def frozen_matmul(x: Float[Array, "t in"], weight: Any) -> Float[Array, "t out"]:
    """`x @ weight` in x's dtype, no gradient for the weight; dequantised again to go backwards.

    A `RoundedSum` is added up and rounded again then, too.
    """
    x, weight = _in_its_basis(x, _stored(weight, x))
    if _is_fused(weight, x):
        from lora_jax.kernels.pallas_dequant_matmul import dequant_matmul

        return dequant_matmul(x, weight)
    return contracted(x, _matrix(weight, x.shape[-1], x), 0)


def _frozen_forward(x: Array, weight: Any) -> tuple[Array, tuple[Any, int]]:
    return frozen_matmul(x, weight), (weight, x.shape[-1])


def _frozen_backward(saved: tuple[Any, int], g: Array) -> tuple[Array, None]:
    weight, rows = saved
    weight = _stored(weight, g)
    if _is_turned(weight):
        # Of the rotated inputs, rotated back.
        return rotated_inputs(_frozen_backward((weight.unrotated(), rows), g)[0], back=True), None
    if _is_fused(weight, g):
        from lora_jax.kernels.pallas_dequant_matmul import dequant_matmul_transposed

        return dequant_matmul_transposed(g, weight), None
    return contracted(g, _matrix(weight, rows, g), 1), None


def _is_turned(weight: Any) -> bool:
    """Whether its inputs are rotated, and are the codes' own otherwise."""
    is_quantized = isinstance(weight, QuantizedArray)
    return is_quantized and weight.spec.rotation != "none" and weight.in_scale is None


def _in_its_basis(x: Array, weight: Any) -> tuple[Array, Any]:
    """Inputs and a weight with the same product, of which no dense weight is rotated."""
    return (rotated_inputs(x), weight.unrotated()) if _is_turned(weight) else (x, weight)


def _is_fused(weight: Any, x: Array) -> bool:
    return (
        isinstance(weight, QuantizedArray) and kernel_for(weight, x.shape[0], x.dtype) == "pallas"
    )


frozen_matmul.defvjp(_frozen_forward, _frozen_backward)


@jax.custom_vjp
def lowrank_matmul(
    x: Float[Array, "t in"],
    a: Float[Array, "in r"],
    b: Float[Array, "r out"],
    scale: Float[Array, " r"],
) -> Float[Array, "t out"]:
    """`((x @ a) * scale) @ b` in x's dtype; gradients of a and b in theirs, none for `scale`."""
    return _lowrank_forward(x, a, b, scale)[0]


def _lowrank_forward(x: Array, a: Array, b: Array, scale: Array) -> tuple[Array, tuple[Array, ...]]:
    # a and b are kept in their own dtype: a copy in x's dtype could be rounded.
    hidden = contracted(x, a.astype(x.dtype), 0) * scale.astype(x.dtype)
    return contracted(hidden, b.astype(x.dtype), 0), (x, hidden, a, b, scale)


def _lowrank_backward(saved: tuple[Array, ...], g: Array) -> tuple[Array, Array, Array, None]:
    x, hidden, a, b, scale = saved
    back = contracted(g, b.astype(g.dtype), 1) * scale.astype(g.dtype)
    # (r, in), then a small transpose: for xᵀ·back, XLA would transpose the large activation.
    da = _transposed_times(back, x, a.dtype).T
    db = _transposed_times(hidden, g, b.dtype)
    return contracted(back, a.astype(g.dtype), 1), da, db, None


lowrank_matmul.defvjp(_lowrank_forward, _lowrank_backward)


@jax.custom_vjp
def head_matmul(
    x: Float[Array, "*batch in"], embedding: Float[Array, "vocab in"]
) -> Float[Array, "*batch vocab"]:
    """`x @ embedding.T` in float32 from 16-bit operands of one dtype.

    They are copied to float32 in neither direction (see `kernels.half.contracted`); gradients are
    rounded to their dtype before they are multiplied.
    """
    return jax.lax.dot_general(
        x, embedding, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )


def _head_forward(x: Array, embedding: Array) -> tuple[Array, tuple[Array, Array]]:
    return head_matmul(x, embedding), (x, embedding)


def _head_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, embedding = saved
    rows, g = x.reshape(-1, x.shape[-1]), g.astype(x.dtype).reshape(-1, g.shape[-1])
    d_embedding = _transposed_times(g, rows, jnp.float32).astype(embedding.dtype)
    return contracted(g, embedding, 0).reshape(x.shape), d_embedding


head_matmul.defvjp(_head_forward, _head_backward)


def _transposed_times(
    x: Float[Array, "t n"], y: Float[Array, "t m"], dtype: Any
) -> Float[Array, "n m"]:
    return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())), preferred_element_type=dtype)
