"""The door of `flax.nnx` models: their weights as a tree, and their calls on a tree of boxes.

The mathematics are those of Linen. A module whose weight is in a box is computed by its twin, the
Linen module of the same settings, which reads the box as Linen modules do: `apply`'s interceptor
gives it the factored product, `find_sites`' notes it. Whatever else reads a boxed weight reads the
dense one. All of it happens on a copy of the model, in subclasses of the classes that are concerned,
so that nnx.scan, vmap, remat and jit split and merge it like any other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import errors, nnx
from flax import linen as nn
from flax.core import meta
from flax.nnx import reprlib
from flax.nnx.nn.dtypes import promote_dtype
from jax import lax
from jax import numpy as jnp

from lora_jax.core.aux_modules import WithAuxModule
from lora_jax.core.boxes import is_boxed
from lora_jax.core.paths import flatten, nearest, unflatten


def params_of(model: Any) -> dict[str, Any]:
    """The weights of an NNX model (its `nnx.Param`s) as a nested dictionary, as Linen has them.

    Layers of a list are named by their numbers: `layers/0/kernel`. Of an abstract model
    (`nnx.eval_shape`) these are jax.ShapeDtypeStructs.

    Raises:
        TypeError: the model is no NNX module.
    """
    return unflatten({_name(path): _raw(one) for path, one in _weights(_checked(model))})


def with_params(model: Any, params: Mapping[str, Any]) -> nnx.Module:
    """A copy of an NNX model with these weights, such as `merge` gives.

    The model stays as it is; the copy has variables of its own (statistics, random states).
    Weights in boxes (`join`) are read as dense ones; `apply` has products for them.

    Raises:
        TypeError: the model is no NNX module.
        ValueError: the weights are not this model's.
    """
    return _bound(*nnx.split(_checked(model)), params)


def without_params(model: Any) -> nnx.Module:
    """A copy of an NNX model without its weights: all that `apply` needs of it, so that a quantised
    base is in memory alone.

    Raises:
        TypeError: the model is no NNX module.
    """
    graph, state = nnx.split(_checked(model))
    copy = nnx.merge(graph, state, copy=True)
    for _, variable in _weights(copy):
        variable.set_raw_value(None)
    return copy


def call(
    parts: tuple[Any, Any],
    params: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    method: str | Callable[..., Any] | None = None,
) -> tuple[Any, Any]:
    """What a model gives on these params, and the state of its other variables afterwards.

    Args:
        parts: graph and state, as `nnx.split` gives them.
        method: its name or function, `__call__` by default.
    """
    model = _bound(*parts, params)
    run = method if callable(method) else getattr(type(model), method or "__call__")
    out = run(model, *args, **kwargs)
    return out, nnx.state(model, nnx.Not(nnx.Param))


def traceable(
    model: Any, method: Any, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], Any, Callable[..., Any]]:
    """The params, the state, and `(params, state, *args)` to what the model gives on both.

    Raises:
        TypeError: the model is no NNX module.
    """
    graph, state = nnx.split(_checked(model))
    run = lambda params, state, *args: call((graph, state), params, args, kwargs, method)[0]
    return params_of(model), state, run


def run(
    model: Any,
    params: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    method: str | Callable[..., Any] | None = None,
) -> Any:
    """What the model gives on these params. What it changes of its other variables (statistics,
    counts of random states) is changed in the model.

    Raises:
        TypeError: the model is no NNX module.
        ValueError: it would change within a transformation that it came into as a constant.
    """
    graph, state = nnx.split(_checked(model))
    before = dict(nnx.to_flat_state(state))
    out, after = call((graph, state), params, args, kwargs, method)
    changed = {
        path: one
        for path, one in nnx.to_flat_state(after)
        if path in before and _raw(one) is not _raw(before[path])
    }
    try:
        nnx.update(model, nnx.from_flat_state(changed))
    except errors.TraceContextError as error:
        raise ValueError(
            f"This call changes the model's own variables ({', '.join(map(_name, changed))}), and "
            "the model came into a JAX transformation as a constant. Let it come in as an "
            "argument, by nnx.jit or nnx.value_and_grad in place of jax's, or call model.eval() "
            "first, if nothing is to change."
        ) from error
    return out


def check_params(model: Any, params: Any) -> None:
    """Raises TypeError if an NNX model's params are no tree of arrays."""
    if isinstance(params, (nnx.Module, nnx.State)):
        raise TypeError(
            f"The weights of {type(model).__name__} are needed as a tree of arrays, and came as "
            f"{type(params).__name__}. Give lora_jax.adapters.params_of(model)."
        )


def kinds_of(model: nnx.Module) -> dict[str, str]:
    """By path of a weight, the class of the module that holds it."""
    nodes = dict(nnx.iter_graph(model))
    return {_name(path): type(nodes[path[:-1]]).__name__ for path, _ in _weights(model)}


def _checked(model: Any) -> nnx.Module:
    if isinstance(model, nnx.Module):
        return model
    if isinstance(model, nn.Module):
        raise TypeError(
            f"{type(model).__name__} is a Linen module, and holds no weights: they are what "
            "model.init(...)['params'] gives and model.apply({'params': params}, ...) takes. "
            "This function is for flax.nnx modules."
        )
    raise TypeError(f"The model needs to be a flax.linen or flax.nnx module, got {model!r:.80}.")


def _weights(model: nnx.Module) -> Iterator[tuple[tuple[Any, ...], nnx.Param]]:
    """Each weight once, by its first path."""
    return ((path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param))


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _raw(leaf: Any) -> Any:
    """The value of a leaf of a state, which need not be a variable."""
    return leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf


def _bound(graph: Any, state: Any, params: Mapping[str, Any]) -> nnx.Module:
    """A new model with these weights, in boxes or not."""
    # Without `copy` the variables would be the model's own.
    model, given = nnx.merge(graph, state, copy=True), flatten(params)
    weights = {_name(path): variable for path, variable in _weights(model)}
    if other := sorted(set(weights) ^ set(given)):
        raise ValueError(
            f"The weights are not this model's: {other[0]!r} is "
            f"{'missing' if other[0] in weights else 'not one of its'} "
            f"({len(given)} came, it has {len(weights)}). Nearest: "
            f"{', '.join(nearest(other[0], given if other[0] in weights else weights))}."
        )
    for path, variable in weights.items():
        if is_boxed(given[path]):
            variable.__class__ = _unboxing(type(variable))
        variable.set_raw_value(given[path])
    for _, node in nnx.iter_graph(model):
        twin = _TWINS.get(type(node))
        if twin is not None and is_boxed(_raw(getattr(node, twin.weight))) and _is_read(node, twin):
            node.__class__ = _by_twin(type(node))
    return model


def _is_read(node: nnx.Module, twin: Twin) -> bool:
    """Whether the module reads its variables as they are, as its twin would."""
    held = [getattr(node, twin.weight), getattr(node, "bias", None)]
    kinds = [_kind(one) for one in held if isinstance(one, nnx.Variable)]
    hooked = any(one.has_metadata("on_get_value") for one in held if isinstance(one, nnx.Variable))
    return not hooked and all(kind.get_value is nnx.Variable.get_value for kind in kinds)


def _kind(variable: nnx.Variable) -> type[nnx.Variable]:
    """The class of a variable that may hold a box."""
    kind = type(variable)
    return kind.__mro__[1] if is_boxed(variable.get_raw_value()) else kind


@functools.cache
def _unboxing(kind: type[nnx.Variable]) -> type[nnx.Variable]:
    """The class of variables that hold a box and are read as the weight that it gives."""

    class Unboxing(kind):
        __slots__ = ()

        def get_value(self, **index: Any) -> jax.Array:
            box = self.get_raw_value()
            if isinstance(box, WithAuxModule):
                raise ValueError(
                    f"This {box.shape} weight carries a trained {box.aux.kind}, and the module "
                    "that reads it has no twin among Linen's, which would apply it."
                )
            dense = kind.from_metadata(meta.unbox(box), dict(self.get_metadata()))
            return dense.get_value(**index)

        def __nnx_repr__(self) -> Iterator[Any]:
            yield reprlib.Object(type=kind.__name__)
            yield reprlib.Attr("box", type(self.get_raw_value()).__name__)

        def __getattr__(self, name: str) -> Any:
            if self.has_metadata(name):
                return self.get_metadata(name)
            return getattr(self.get_value(), name)

    Unboxing.__name__ = Unboxing.__qualname__ = kind.__name__
    return Unboxing


@functools.cache
def _by_twin(kind: type[nnx.Module]) -> type[nnx.Module]:
    """The class of modules that are computed by their Linen twins."""
    twin = _TWINS[kind]

    class ByTwin(kind):
        pass

    def computed(own: str, name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            linen = twin.of(self) if kwargs.get("out_sharding") is None else None
            if linen is None:
                return getattr(kind, own)(self, *args, **kwargs)
            kwargs.pop("out_sharding", None)
            held = {twin.name: getattr(self, twin.weight), "bias": getattr(self, "bias", None)}
            leaves = {part: _raw(one) for part, one in held.items() if one is not None}
            return linen.apply({"params": leaves}, *args, method=name, **kwargs)

        return method

    for own, name in twin.methods.items():
        setattr(ByTwin, own, computed(own, name))
    ByTwin.__name__ = ByTwin.__qualname__ = kind.__name__
    return ByTwin


@dataclass(frozen=True)
class Twin:
    """Which Linen module computes what an NNX module does: `of` makes it, or says None.

    weight: the attribute that holds the weight. name: what Linen calls it. methods: by name, the
    twin's method that does the same.
    """

    weight: str
    of: Callable[[Any], nn.Module | None]
    name: str = "kernel"
    methods: Mapping[str, str] = field(default_factory=lambda: {"__call__": "__call__"})


def register_twin(
    kind: type[nnx.Module],
    weight: str,
    twin: Callable[[Any], nn.Module | None],
    *,
    name: str = "kernel",
    methods: Mapping[str, str] | None = None,
) -> None:
    """Gives an NNX module of your own the factored product of the Linen module that computes the
    same.

    Without a twin its weight is read as a dense one, and all axes but the last are inputs.

    >>> register_twin(Project, "w", lambda m: nn.Einsum(m.shape, "btd,dnh->btnh", use_bias=False))
    ... # doctest: +SKIP

    Args:
        weight: the attribute that holds the weight; a `bias` beside it is the twin's bias.
        twin: makes the Linen module of an NNX module; None where it computes something else.
        name: what Linen calls the weight ('embedding' of nn.Embed).
        methods: by name, the twin's method that does the same; `__call__` by default.

    Raises:
        ValueError: the kind has one.
    """
    if kind in _TWINS:
        raise ValueError(f"{kind.__name__} has a Linen twin already. Register a subclass.")
    _TWINS[kind] = Twin(weight, twin, name, methods or {"__call__": "__call__"})


def _same(kind: type[nn.Module], *names: str) -> Callable[..., nn.Module | None]:
    """Makes the Linen module with the settings of these `names`, and others; None where Linen has
    no word for what an NNX module was told.
    """

    def made(module: Any, **others: Any) -> nn.Module | None:
        own = [getattr(module, name, None) for name in _COMPUTES]
        plain = getattr(module, "preferred_element_type", None) is None
        if not plain or module.promote_dtype is not promote_dtype or not set(own) <= {*_PLAIN}:
            return None
        alike = {name: getattr(module, name) for name in ("dtype", "param_dtype", *names)}
        return kind(parent=None, **alike, **others)

    return made


_COMPUTES = ("dot_general", "dot_general_cls", "einsum_op", "conv_general_dilated")
_PLAIN = (None, lax.dot_general, jnp.einsum, lax.conv_general_dilated)
_PRODUCT = ("use_bias", "precision")
_WINDOWS = ("kernel_size", "strides", "padding", "input_dilation", "kernel_dilation", "mask")

_dense = _same(nn.Dense, *_PRODUCT)
_general = _same(nn.DenseGeneral, "axis", *_PRODUCT)
_einsum = _same(nn.Einsum, "einsum_str", "precision")
_conv = _same(nn.Conv, *_WINDOWS, "feature_group_count", *_PRODUCT)


def _of_general(module: nnx.LinearGeneral) -> nn.Module | None:
    return _general(module, features=module.out_features, batch_dims=tuple(module.batch_axis))


def _of_einsum(module: nnx.Einsum) -> nn.Module | None:
    return _einsum(module, shape=module.kernel_shape, use_bias=module.bias is not None)


_TWINS: dict[type[nnx.Module], Twin] = {
    nnx.Linear: Twin("kernel", lambda module: _dense(module, features=module.out_features)),
    nnx.LinearGeneral: Twin("kernel", _of_general),
    nnx.Einsum: Twin("kernel", _of_einsum),
    nnx.Conv: Twin("kernel", lambda module: _conv(module, features=module.out_features)),
    nnx.Embed: Twin(
        "embedding",
        _same(nn.Embed, "num_embeddings", "features"),
        "embedding",
        {"__call__": "__call__", "attend": "attend"},
    ),
}
