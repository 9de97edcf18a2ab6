"""`join` frozen weights and adapters into params, `split` them, and `apply` a model to them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from lora_jax.adapters import rules
from lora_jax.adapters.einsum import experts_product, fits_experts
from lora_jax.adapters.products import Call
from lora_jax.core.adapted import Adapted
from lora_jax.core.aux_modules import AuxModule, Prefix, WithAuxModule, readable
from lora_jax.core.boxes import Boxed
from lora_jax.core.model_variable import ModelVariable, take_variables
from lora_jax.core.paths import flatten, nearest, unflatten
from lora_jax.core.rows import WithRows
from lora_jax.core.trainable import Trainables, refuse_gradients_of_data
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
        TypeError: a leaf is nothing that is trained, or what is not trained of an adapter (its
            scale, say) is differentiated: see `lora_jax.partition`.
    """
    params = flatten(frozen)
    # Auxiliary modules last: the weight that carries one may itself be adapted.
    for name, update in sorted(trainable.items(), key=lambda item: "#" in item[0]):
        path, _, _ = name.partition("#")
        if not hasattr(update, "onto"):
            raise TypeError(
                f"{name!r} needs an adapter, as adapt or a loader gives it, and came as "
                f"{update!r:.80}."
            )
        if isinstance(update, ModelVariable):
            update.onto(None, name)
        if path not in params and not update.replaces:
            raise KeyError(
                f"The adapter has factors for {path!r}, and the base has no such weight. Nearest: "
                f"{', '.join(nearest(path, params))}. It was made for another model, or for "
                "another layout (scan on or off) of this one."
            )
        update = refuse_gradients_of_data(name, update)
        params[path] = update.onto(params.get(path), path, key)
    return unflatten(params)


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inverse of `join`: the frozen weights, and the adapters by path.

    Trained layers of a stack come back as the whole stack.
    """
    frozen: dict[str, Any] = {}
    trainable: dict[str, Any] = {}
    for path, leaf in flatten(params).items():
        while isinstance(leaf, WithAuxModule):
            trainable[f"{path}#{leaf.aux.kind}"], leaf = leaf.aux, leaf.base
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
    model: Any,
    frozen: Mapping[str, Any],
    trainable: Trainables,
    *args: Any,
    key: jax.Array | None = None,
    collections: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """What `model.apply` gives on the joined params, by factored products where a rule exists.

    The function is that of `model.apply({'params': join(frozen, trainable)}, ...)`; only the cost
    differs. Of an NNX model it is that of the model with these weights in place of its own, which
    are not read; what the call changes of its other variables is changed in it.

    Args:
        model: a Linen or an NNX module.
        key: the key of the adapters' dropout; None means no dropout.
        collections: a Linen model's other variables, such as batch statistics, in place of those
            that `trainable` may hold (`core.model_variable`).
        args, kwargs: passed to `model.apply`, or to the NNX model; `method` is a name or function.

    Raises:
        TypeError, ValueError: see `join`; or the model is of neither kind.
    """
    for leaf in trainable.values():
        if isinstance(leaf, Prefix) and leaf.inserts:
            args = leaf.insert(args)
    trainable, own = take_variables(trainable)
    params = join(frozen, trainable, key=key)
    with nn.intercept_methods(factored), readable():
        if isinstance(model, nn.Module):
            variables = {**own, **(collections or {}), "params": params}
            return model.apply(variables, *args, **kwargs)
        from lora_jax.adapters import nnx  # most of a second, for those who use it

        if own or collections is not None or "mutable" in kwargs:
            raise TypeError(
                "collections and mutable are for Linen models. An NNX model holds its other "
                "variables, and a call changes them in it."
            )
        return nnx.run(model, params, args, kwargs, kwargs.pop("method", None))


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
    found = []
    for leaf in module.variables.get("params", {}).values():
        while isinstance(leaf, WithAuxModule):
            found.append(leaf.aux)
            leaf = leaf.base
    return found


def _computed(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    module = context.module
    call = Call(args, kwargs)
    rule = rules.RULES.get((type(module), context.method_name))
    if rule is not None and module.has_variable("params", rule.weight):
        leaf = module.get_variable("params", rule.weight)
        while isinstance(leaf, WithAuxModule):
            leaf = leaf.base
        if fits_experts(module, leaf, context.method_name, call):
            return experts_product(module, leaf, call)

        # Other factors with stack axes left (experts of a raw parameter) are read as dense weights.
        stacked = isinstance(leaf, Adapted) and leaf.lora.scale.ndim > 1
        rows = isinstance(leaf, WithRows) and type(module) is not nn.Embed
        dense = stacked or rows or isinstance(leaf, TrainedWeight)
        if isinstance(leaf, Boxed) and not dense and rule.fits(module, call):
            return rule.product(module, leaf, call)
        if rule.plain and isinstance(leaf, jax.Array) and rule.fits(module, call):
            return rule.plain(module, leaf, call)
    return next_fun(*args, **kwargs)
