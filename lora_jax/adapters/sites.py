"""Which weights of a model can be adapted: `find_sites` traces it and watches who reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.core import meta

from lora_jax.adapters import rules
from lora_jax.adapters.products import Call
from lora_jax.core.boxes import Boxed
from lora_jax.core.paths import flatten, unflatten
from lora_jax.core.shapes import shape_of


@dataclass(frozen=True)
class Site:
    """A place where a weight is read.

    kind: the name of the module that reads it.
    shape: as the module sees it, without stack axes.
    stack: leading axes that a scan or vmap slices off.
    in_axes: which axes of `shape` are inputs, the rest are outputs; none for vectors, which cannot
        be adapted.
    has_rule: whether `apply` has a factored product for it (otherwise the dense update is formed
        at each read).
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    stack: tuple[int, ...]
    in_axes: tuple[int, ...]
    has_rule: bool
    dtype: Any = jnp.float32

    @property
    def rows(self) -> int:
        """Inputs of the weight seen as a matrix."""
        return math.prod(self.shape[axis] for axis in self.in_axes)

    @property
    def columns(self) -> int:
        """Outputs of the weight seen as a matrix."""
        return math.prod(self.shape) // self.rows

    @property
    def is_matrix(self) -> bool:
        """Whether the weight can be adapted or quantised."""
        return len(self.in_axes) > 0


class _Probe(Boxed):
    """A weight that knows its own name and notes when it is read as a parameter."""

    value: Any
    path: str = struct.field(pytree_node=False)
    seen: _Seen = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def unbox(self) -> jax.Array:
        self.seen.read.add(self.path)
        self.seen.shapes.setdefault(self.path, tuple(self.value.shape))
        return self.value


class _Seen:
    """What a trace saw. Compared by identity, so that nn.jit shares no trace between blocks."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.readers: dict[str, tuple[str, tuple[int, ...], bool]] = {}


def find_sites(model: Any, *inputs: Any, method: Any = None, **kwargs: Any) -> dict[str, Site]:
    """Every parameter that the model reads, by path, from shapes alone: no weight is made and
    nothing is computed.

    Works under nn.scan, nn.vmap, nn.remat and nn.jit: each weight is marked with its own name, so
    that blocks that share one trace are told apart. So do those of nnx in an NNX model, whose kinds
    are named by their Linen twins (Dense for nnx.Linear).

    Args:
        model: a Linen or an NNX module.
        inputs, kwargs: what the model is called with, arrays or jax.ShapeDtypeStruct.
        method: the method to call, the model's `__call__` by default.

    Raises:
        ValueError: a weight is read past its box (with `self.variables`, `get_variable` or
            `param(..., unbox=False)`), so a quantised or adapted weight could not work there; or it
            is never read for these inputs.
    """
    seen = _Seen()

    def interceptor(
        next_fun: Any, args: Any, kw: Any, context: nn.module.InterceptorContext
    ) -> Any:
        _note_readers(context, Call(args, kw), seen)
        return next_fun(*args, **kw)

    def probed(params: Mapping[str, Any], others: Any, *args: Any) -> Any:
        probes = {path: _Probe(value, path, seen) for path, value in flatten(params).items()}
        with nn.intercept_methods(interceptor):
            return run(unflatten(probes), others, *args)

    kinds: dict[str, str] = {}
    if isinstance(model, nn.Module):
        params, others, run = _linen(model, inputs, method, kwargs)
    else:
        from lora_jax.adapters import nnx  # most of a second, for those who use it

        params, others, run = nnx.traceable(model, method, kwargs)
        kinds = nnx.kinds_of(model)
    jax.eval_shape(probed, params, others, *inputs)

    full = flatten(params)
    if missing := sorted(set(full) - seen.read):
        raise ValueError(
            f"{len(missing)} of {len(full)} weights are not read through self.param (of an NNX "
            f"model, as nnx.Param) for these inputs: {', '.join(missing[:5])}. Either the inputs "
            "take another branch of the model than training does (pass those inputs), or a module "
            "reads them with self.variables, get_variable, param(..., unbox=False) or "
            "get_raw_value, past the boxes that hold quantised and adapted weights."
        )
    return {path: _site(path, value, seen, kinds.get(path)) for path, value in full.items()}


def check_params(model: Any, params: Any) -> None:
    """Raises TypeError if params are no tree of arrays, but those of NNX's own kind."""
    if not isinstance(model, nn.Module):
        from lora_jax.adapters import nnx

        nnx.check_params(model, params)


def _linen(
    model: nn.Module, inputs: tuple[Any, ...], method: Any, kwargs: Mapping[str, Any]
) -> tuple[Any, Any, Any]:
    """Shapes of a Linen model's params and of its other variables, and what runs it on both."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    variables = jax.eval_shape(
        lambda *args: model.init(keys, *args, method=method, **kwargs), *inputs
    )

    def run(params: Mapping[str, Any], others: Mapping[str, Any], *args: Any) -> Any:
        given, written = {**others, "params": params}, list(others) or False
        return model.apply(given, *args, method=method, rngs=keys, mutable=written, **kwargs)

    others = {name: value for name, value in variables.items() if name != "params"}
    return meta.unbox(variables["params"]), others, run


def check_inputs(inputs: Any) -> None:
    """Raises TypeError if a model's positional arguments are not in a tuple: one array would be
    taken apart along its first axis.
    """
    if isinstance(inputs, (str, Mapping)) or hasattr(inputs, "shape"):
        raise TypeError(
            "The model's positional arguments are needed in a tuple, such as (tokens,); got "
            f"{shape_of(inputs)}."
        )


def _note_readers(context: nn.module.InterceptorContext, call: Call, seen: _Seen) -> None:
    module = context.module
    ruled = any(kind is type(module) for kind, _ in rules.RULES)
    if ruled and (type(module), context.method_name) not in rules.RULES:
        # A method that its own __call__ calls on the way, such as Einsum's shape of a bias.
        return
    for name, leaf in module.variables.get("params", {}).items():
        if isinstance(leaf, _Probe):
            in_axes = rules.input_axes(module, name, leaf.shape, call)
            has_rule = rules.find_rule(module, context.method_name, name, call) is not None
            # A weight that another method reads without a rule (a tied embedding, say) has none.
            if leaf.path in seen.readers:
                has_rule = has_rule and seen.readers[leaf.path][2]
            seen.readers[leaf.path] = (type(module).__name__, in_axes, has_rule)
            seen.shapes.setdefault(leaf.path, leaf.shape)


def _site(path: str, value: Any, seen: _Seen, holder: str | None) -> Site:
    """`holder` is the kind of the module that holds the weight, where it is not known who reads it."""
    shape = seen.shapes[path]
    unknown = (holder or "unknown", tuple(range(len(shape) - 1)), False)
    kind, in_axes, has_rule = seen.readers.get(path, unknown)
    stack = tuple(value.shape[: len(value.shape) - len(shape)])
    return Site(path, kind, shape, stack, in_axes, has_rule, value.dtype)
