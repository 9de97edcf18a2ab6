"""Factored products of Linen's modules: `base(x) + ((x @ a) * scale) @ b`, no dense update.

Each gets the module, the leaf in place of its weight (quantised, adapted or both), and the call.
With DoRA the sum's columns are rescaled; a bias is added after that. In training with dropout the
base term sees the whole input, as the paper has it; PEFT drops the input there, too, in the part of
the base that the magnitude adds or takes away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from lora_jax.adapters.recording import Recorded, record
from lora_jax.core.adapted import Adapted
from lora_jax.core.changes import Change
from lora_jax.core.lowrank import LowRank
from lora_jax.core.mesh import BATCH, Placed, cut_of
from lora_jax.core.rounded import straight_through
from lora_jax.core.rows import WithRows
from lora_jax.kernels.matmul import frozen_matmul, head_matmul, lowrank_matmul


@dataclass(frozen=True)
class Call:
    """The arguments of an intercepted method."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def factored_product(x: Float[Array, "*batch in"], leaf: Any) -> Float[Array, "*batch out"]:
    """`x @ weight`, flat outputs, for a weight (in, ...) that is dense, quantised or adapted.

    Frozen weights have no gradient, are dequantised again in the backward pass, and the update is
    `((x @ a) * scale) @ b`, with dropout and DoRA where the adapter has them.
    """
    return _product(x.reshape(-1, x.shape[-1]), leaf).reshape(*x.shape[:-1], -1)


def dense(module: nn.Module, leaf: Any, call: Call) -> Array:
    """`nn.Dense` and `nn.DenseGeneral`: a matrix product of what is contracted with what is made."""
    (x,) = call.args
    bias = bias_of(module)
    # Linen sorts them, whatever order they are given in.
    axes = sorted(axis % x.ndim for axis in as_tuple(getattr(module, "axis", -1)))
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    flat = x.transpose(*kept, *axes).astype(_dtype(module, x, leaf, bias))
    rows = math.prod(x.shape[axis] for axis in axes)
    y = _product(flat.reshape(-1, rows), leaf)
    y = y.reshape(*(x.shape[axis] for axis in kept), *as_tuple(module.features))
    return y if bias is None else y + bias.astype(y.dtype)


def conv(module: nn.Module, leaf: Any, call: Call) -> Array:
    """`nn.Conv`: a convolution to `rank` channels, and a product."""
    if not has_update(leaf):
        return frozen_call(module, leaf, call)
    factors = leaf.factors()
    y = frozen_call(module, leaf, call, bias=factors is None)
    x = seen_by_update(call.args[0], leaf).astype(y.dtype)

    def update(low: LowRank) -> Array:
        kernel = low.a.reshape(*leaf.kernel_shape[:-1], low.rank)
        into = module.clone(features=low.rank, use_bias=False, parent=None)
        hidden = into.apply({"params": {"kernel": kernel.astype(y.dtype)}}, x)
        return (hidden * low.scale.astype(y.dtype)) @ low.b.astype(y.dtype)

    y = rescaled(with_update(y, update, leaf), factors)
    return y if factors is None or not module.use_bias else y + bias_of(module).astype(y.dtype)


def embed(module: nn.Module, leaf: Any, call: Call) -> Array:
    """`nn.Embed`: rows of `a`, times `b`."""
    y = _looked_up(module, leaf, call)
    if isinstance(leaf, WithRows):
        return leaf.look_up(call.args[0], y)
    if not has_update(leaf):
        return y

    def update(low: LowRank) -> Array:
        return (jnp.take(low.a, call.args[0], axis=0) * low.scale) @ low.b

    return rescaled(with_update(y, update, leaf), leaf.factors())


def _looked_up(module: nn.Module, leaf: Any, call: Call) -> Array:
    """The frozen embedding's rows. On a mesh ids travel and what they look up, not the embedding."""
    cut = cut_of(leaf)
    if cut is None:
        return frozen_call(module, leaf, call, weight="embedding")
    base = _frozen(leaf)
    here = base.base if isinstance(base, Placed) else base
    # Two steps, since XLA goes from one to the other by all-to-all only where one axis moves.
    rows = tuple(axis for axis in BATCH if axis not in (cut.columns or ()))
    ids = cut.held(call.args[0], rows, *[None] * (call.args[0].ndim - 1))
    y = frozen_call(module, here, Call((ids,), call.kwargs), weight="embedding")
    return cut.outputs(cut.held(y, rows, *[None] * (y.ndim - 2), cut.columns))


def attend(module: nn.Module, leaf: Any, call: Call) -> Array:
    """`nn.Embed.attend`: the transposed factors."""
    if has_update(leaf):
        # Columns of the embedding are inputs here, so their factors act on the query.
        call = Call((rescaled(call.args[0], leaf.factors()),), call.kwargs)
    y = frozen_call(module, leaf, call, method="attend", weight="embedding")
    if isinstance(leaf, WithRows):
        return leaf.logits(call.args[0], y)
    if not has_update(leaf):
        return y
    query = seen_by_update(call.args[0], leaf).astype(y.dtype)

    def update(low: LowRank) -> Array:
        a, b, scale = (x.astype(y.dtype) for x in (low.a, low.b, low.scale))
        return ((query @ b.T) * scale) @ a.T

    return with_update(y, update, leaf)


def plain_attend(module: nn.Module, embedding: Array, call: Call) -> Array:
    """`attend` as a product with the embedding as it lies, where XLA would copy `embedding.T`."""
    query, embedding = promote_dtype(call.args[0], embedding, dtype=module.dtype, inexact=False)
    if query.dtype.itemsize == 2:
        return head_matmul(query, embedding).astype(query.dtype)
    return jax.lax.dot_general(query, embedding, (((query.ndim - 1,), (1,)), ((), ())))


def _product(x: Array, leaf: Any) -> Array:
    cut = cut_of(leaf)
    if cut is None:
        return _product_here(x, leaf)
    return cut.outputs(_product_here(cut.inputs(x), leaf))


def _product_here(x: Array, leaf: Any) -> Array:
    if isinstance(leaf, Recorded):
        return frozen_matmul(record(x, leaf.probe), leaf.base)
    if not isinstance(leaf, Adapted):
        return frozen_matmul(x, leaf)
    if isinstance(leaf.lora, Change) and leaf.lora.rotates:
        return frozen_matmul(leaf.lora.turned(x), leaf.base)
    if not has_update(leaf):
        # Made again in the backward pass, as frozen weights are.
        return jax.checkpoint(lambda x, leaf: x @ leaf.matrix().astype(x.dtype))(x, leaf)
    y = frozen_matmul(x, leaf.frozen())
    return rescaled(with_update(y, product_of(x, leaf), leaf), leaf.factors())


def has_update(leaf: Any) -> bool:
    """Whether a weight is adapted by an update that has a product of its own: what multiplies the
    base is read with it, as one dense weight.
    """
    return isinstance(leaf, Adapted) and not leaf.lora.of_base


def product_of(x: Array, leaf: Adapted) -> Callable[[LowRank], Array]:
    """What gives a term of the update its part of `x @ weight`, for the rows of x."""
    x, cut = seen_by_update(x, leaf), cut_of(leaf)

    def update(low: LowRank) -> Array:
        a, b = (low.a, low.b) if cut is None else cut.factors(low.a, low.b)
        return lowrank_matmul(x, a, b, low.scale)

    return update


def with_update(y: Array, update: Callable[[LowRank], Array], leaf: Adapted) -> Array:
    """`y` of `leaf.frozen()` with the product of the update, less that of the start that an
    initialiser took out of the base. A rounded sum has it: it gets the update's gradient alone.
    """
    low, start = leaf.update(), leaf.lora.start()
    if leaf.lora.rounded:
        return straight_through(y, update(low).astype(y.dtype))
    # Two products, not one of twice the rank: equal factors cancel exactly at step 0.
    moved = update(low) if start is None else update(low) - update(start)
    return y + moved.astype(y.dtype)


def rescaled(y: Array, factors: Array | None) -> Array:
    """`y * factors` along the last axis, in float32, so that small moves of a magnitude count."""
    return y if factors is None else (y.astype(jnp.float32) * factors).astype(y.dtype)


def seen_by_update(x: Array, leaf: Adapted) -> Array:
    """The input as the update's product has it: with dropout, and of a rounded sum without a
    gradient, since that of `leaf.frozen()` is whole.
    """
    if leaf.lora.rounded:
        return jax.lax.stop_gradient(x)
    rate = leaf.lora.dropout
    if leaf.key is None or rate is None:
        return x
    keep = 1 - rate
    kept = jax.random.bernoulli(leaf.key, keep, x.shape)
    return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros((), x.dtype))


def frozen_call(
    module: nn.Module,
    leaf: Any,
    call: Call,
    *,
    method: str = "__call__",
    weight: str = "kernel",
    bias: bool = True,
) -> Array:
    """The module's own computation on the frozen weight, dequantised again in the backward pass."""
    base = _frozen(leaf)
    others = {
        key: meta.unbox(value)
        for key, value in module.variables["params"].items()
        if key != weight and (bias or key != "bias")
    }
    detached = module.clone(parent=None) if bias else module.clone(parent=None, use_bias=False)
    x, *static = call.args  # What may follow x is an einsum's equation.

    def run(base: Any, rest: dict[str, Array], x: Array) -> Array:
        params = {**rest, weight: meta.unbox(base)}
        return detached.apply({"params": params}, x, *static, method=method, **call.kwargs)

    return jax.checkpoint(run)(base, others, x)


def _frozen(leaf: Any) -> Any:
    """The weight that the module's own computation reads."""
    if isinstance(leaf, Adapted):
        return leaf.frozen() if has_update(leaf) else leaf
    return leaf.base if isinstance(leaf, WithRows) else leaf


def bias_of(module: nn.Module) -> Array | None:
    """The module's bias, or None."""
    return meta.unbox(module.get_variable("params", "bias")) if module.use_bias else None


def _dtype(module: nn.Module, x: Array, leaf: Any, bias: Array | None) -> Any:
    """The dtype that Linen would compute in: the module's, else what its operands promote to."""
    operands = [each.dtype for each in (x, leaf, bias) if each is not None]
    return module.dtype or jnp.result_type(*operands)


def as_tuple(value: Any) -> tuple[int, ...]:
    """Linen's axes and features, which may be one number, as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
