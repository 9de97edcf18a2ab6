"""`join` frozen weights and adapters into params, `split` them again, and `apply` a model to them
with factored products.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from lora_jax.adapters import rules
from lora_jax.core.aux_modules import AuxModule, Prefix, WithAuxModule, readable
from lora_jax.core.boxes import Boxed
from lora_jax.core.lowrank import Adapted, LowRank
from lora_jax.core.paths import flatten, nearest, unflatten
from lora_jax.core.rows import Rows, WithRows
from lora_jax.core.trainable import Trainables
from lora_jax.core.trained_weight import TrainedWeight


def join(
    frozen: Mapping[str, Any], trainable: Trainables, *, key: jax.Array | None = None
) -> dict[str, Any]:
    """Params for plain `model.apply`: adapted weights in boxes, whole-trained weights in place of
    the frozen ones.

    Args:
        key: turns the adapters' dropout on; every site and layer gets a key of its own.

    Raises:
        KeyError: an adapter names a weight that is not there.
        ValueError: an adapter's factors do not fit its weight.
    """
    params = flatten(frozen)
    # Auxiliary modules last: the weight that carries one may itself be adapted.
    for path, update in sorted(trainable.items(), key=lambda item: isinstance(item[1], AuxModule)):
        if isinstance(update, TrainedWeight):
            params[path] = update
            continue
        path, _, _ = path.partition("#")
        if path not in params:
            raise KeyError(
                f"The adapter has factors for {path!r}, and the base has no such weight. Nearest: "
                f"{', '.join(nearest(path, params))}. "
                "It was made for another model, or for another layout (scan on or off) of this one."
            )
        if isinstance(update, Rows):
            params[path] = update.onto(params[path])
        elif isinstance(update, AuxModule):
            params[path] = WithAuxModule(base=params[path], aux=update)
        else:
            params[path] = _adapted(path, params[path], update, key)
    return unflatten(params)


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inverse of `join`: the frozen weights, and the adapters by path. (Trained layers of a
    stack come back as the whole stack.)
    """
    frozen: dict[str, Any] = {}
    trainable: dict[str, Any] = {}
    for path, leaf in flatten(params).items():
        while isinstance(leaf, WithAuxModule):
            trainable[f"{path}#{leaf.aux.name}"], leaf = leaf.aux, leaf.base
        if isinstance(leaf, Adapted):
            frozen[path], trainable[path] = leaf.base, leaf.lora
        elif isinstance(leaf, WithRows):
            frozen[path], trainable[path] = leaf.base, leaf.rows
        elif isinstance(leaf, TrainedWeight):
            trainable[path] = leaf
        else:
            frozen[path] = leaf
    return unflatten(frozen), trainable


def apply(
    model: nn.Module,
    frozen: Mapping[str, Any],
    trainable: Trainables,
    *args: Any,
    key: jax.Array | None = None,
    collections: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """What `model.apply` gives on the joined params, computed by factored products where a rule
    exists.

    The function is the same as `model.apply({'params': join(frozen, trainable)}, ...)`; only the cost
    differs.

    Args:
        key: the key of the adapters' dropout; None means no dropout.
        collections: the model's other variables, such as batch statistics.
        args, kwargs: passed to `model.apply`.
    """
    for leaf in trainable.values():
        if isinstance(leaf, Prefix) and leaf.inserts:
            args = leaf.insert(args)
    with nn.intercept_methods(factored), readable():
        return model.apply(
            {**(collections or {}), "params": join(frozen, trainable, key=key)}, *args, **kwargs
        )


def factored(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    """A Linen interceptor that computes known module kinds from the parts of their boxed weight.

    It decides from the leaf that the module reads, never from `module.path`: nn.jit shares traces
    between equal blocks.
    """
    module = context.module
    if context.method_name == "__call__" and (found := _aux_modules(module)):
        if args:
            args = (functools.reduce(lambda x, aux: aux.before(x), found, args[0]), *args[1:])
        y = _computed(next_fun, args, kwargs, context)
        return functools.reduce(lambda y, aux: aux.after(y), found, y)
    return _computed(next_fun, args, kwargs, context)


def _aux_modules(module: nn.Module) -> list[AuxModule]:
    found, leaves = [], list(module.variables.get("params", {}).values())
    for leaf in leaves:
        while isinstance(leaf, WithAuxModule):
            found.append(leaf.aux)
            leaf = leaf.base
    return found


def _computed(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    module = context.module
    call = rules.Call(args, kwargs)
    rule = rules.RULES.get((type(module), context.method_name))
    if rule is not None and module.has_variable("params", rule.weight):
        leaf = module.get_variable("params", rule.weight)
        while isinstance(leaf, WithAuxModule):
            leaf = leaf.base
        if rules.fits_experts(module, leaf, context.method_name, call):
            return rules.experts_product(module, leaf, call)
        # Other factors with stack axes left (the experts of a raw parameter) are read as a dense
        # weight.
        stacked = isinstance(leaf, Adapted) and leaf.lora.a.ndim > 2
        dense = isinstance(leaf, TrainedWeight) or (
            isinstance(leaf, WithRows) and type(module) is not nn.Embed
        )
        if isinstance(leaf, Boxed) and not dense and not stacked and rule.fits(module, call):
            return rule.product(module, leaf, call)
        if isinstance(leaf, jax.Array) and (y := rule.plain(module, leaf, call)) is not None:
            return y
    return next_fun(*args, **kwargs)


def _adapted(path: str, base: Any, low: LowRank, key: jax.Array | None) -> Adapted:
    stack = low.a.shape[:-2]
    kernel_shape = base.shape[len(stack) :]
    rows = 1
    for axis in low.in_axes:
        rows *= kernel_shape[axis] if axis < len(kernel_shape) else 0
    columns = 1
    for axis, size in enumerate(kernel_shape):
        columns *= 1 if axis in low.in_axes else size
    if tuple(base.shape[: len(stack)]) != tuple(stack) or (rows, columns) != (
        low.rows,
        low.b.shape[-1],
    ):
        raise ValueError(
            f"The adapter of {path!r} does not fit: factors {tuple(low.a.shape)} and "
            f"{tuple(low.b.shape)} for a weight of shape "
            f"{tuple(base.shape)}. It was made for another model or another layout of this one."
        )
    if key is None or low.dropout is None:
        return Adapted(base=base, lora=low)
    site_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return Adapted(
        base=base, lora=low, key=jax.random.split(site_key, stack) if stack else site_key
    )
