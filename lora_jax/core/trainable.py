"""The trainable tree: what is trained, by the path of the weight that it changes.

A trained thing has arrays that an optimiser moves and arrays that go with them: alpha's scale, a
rate of dropout, the rows of an embedding. `partition` tells them apart, so that any optimiser, with
weight decay or without, sees the first alone:

    trained, fixed = partition(trainable)
    grads = jax.grad(lambda trained: loss(frozen, combine(trained, fixed), batch))(trained)
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, jaxtyped

from lora_jax.core.shapes import ShapesRepr


class Trainable(ShapesRepr):
    """What is trained of one weight, or of the module that reads it: an entry of a trainable tree.

    A frozen dataclass that is a pytree (`flax.struct.PyTreeNode`). In every array, stack axes
    (layers of a scan, adapters side by side) come first. What stands here is what a kind without
    factors answers; every kind says its `kind` and `onto`, and what differs.

    kind: a word for it, as in 'lora', 'whole', 'rows': in tables, files and errors.
    rank: columns of its factors, padding included; 0 if it has no factors.
    replaces: whether it stands in the weight's place: the weight is then not in the frozen tree.
    """

    kind: ClassVar[str]
    rank: Any = 0
    replaces: ClassVar[bool] = False

    def trained_fields(self) -> tuple[str, ...]:
        """Names of the arrays that are trained; all others are data."""
        return ("value",)

    def label(self, field: str) -> str:
        """Which learning rate a trained array has: 'a', 'b', 'vector', 'whole' or 'module'."""
        return "whole"

    def decays(self, field: str) -> bool:
        """Whether weight decay acts on a trained array."""
        return self.label(field) != "vector"

    def active_parameters(self) -> int:
        """Number of trained entries, without padding and without layers that are left out."""
        return sum(getattr(self, name).size for name in self.trained_fields())

    def onto(self, base: Any, path: str, key: jax.Array | None = None) -> Any:
        """The box that a module reads in place of `base`, the frozen weight or a box of it.

        `base` is None where this `replaces` it; `path` is the weight's name; `key` turns dropout
        on.

        Raises:
            ValueError: the shapes do not fit.
        """
        raise NotImplementedError

    def delta(self) -> Array | None:
        """The dense update as float32 matrices (*stack, in, out); None if that takes the base."""
        return None

    def at_rest(self) -> Any:
        """The same where nothing is trained: ordinary factors, no dropout, nothing precomputed."""
        return self

    def pad(self, like: Any) -> Any:
        """The same function in the arrays that `like` has: columns of zeros up to its rank.

        Raises:
            ValueError: it has more columns, or `like` has other arrays.
        """
        return self

    def trim(self) -> Any:
        """The same function without the columns that no layer uses; None if nothing is left."""
        return self


# By path of the weight; auxiliary modules (bottlenecks, gains, prefixes) by `path#name`.
Trainables = Mapping[str, Trainable]


def trainable_mask(trainable: Trainables) -> dict[str, Any]:
    """The tree with True for each trained array, False for the data with it: an optax mask."""
    return {
        path: leaf.replace(**{name: name in leaf.trained_fields() for name in given_fields(leaf)})
        for path, leaf in trainable.items()
    }


def partition(trainable: Trainables) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that are trained and those that are not, each with None where the other has one.

    Not trained are scale, dropout and fixed factors. Gradients and optimisers belong on the first:
    `apply` and `join` refuse to differentiate the second, since weight decay would change it
    without a word.
    """
    mask = trainable_mask(trainable)

    def part(wanted: bool) -> dict[str, Any]:
        return jax.tree.map(lambda on, x: x if on is wanted else None, mask, dict(trainable))

    return part(True), part(False)


def combine(trained: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `partition`."""

    def given(leaf: Any) -> dict[str, Any]:
        return {name: getattr(leaf, name) for name in given_fields(leaf)}

    return {path: leaf.replace(**given(trained[path])) for path, leaf in fixed.items()}


def trainable_labels(trained: Mapping[str, Any]) -> dict[str, Any]:
    """'a', 'b', 'vector', 'whole' or 'module' for each trained array (`optax.multi_transform`)."""
    return {
        path: leaf.replace(**{name: leaf.label(name) for name in given_fields(leaf)})
        for path, leaf in trained.items()
    }


def refuse_gradients_of_data(path: str, leaf: Any) -> Any:
    """The same leaf; differentiating what is not trained of it is an error.

    A gradient of 0 would look harmless, and `optax.adamw` would still decay the scale.
    """
    fixed = [name for name in given_fields(leaf) if name not in leaf.trained_fields()]
    return leaf.replace(
        **{
            name: _data(f"{name!r} of {path!r}", value)
            for name in fixed
            # Only a traced array can be differentiated.
            if isinstance(value := getattr(leaf, name), jax.core.Tracer)
            and jnp.issubdtype(value.dtype, jnp.inexact)
        }
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _data(name: str, x: Array) -> Array:
    return x


def _data_jvp(name: str, primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Any]:
    if not isinstance(tangents[0], SymbolicZero):
        raise TypeError(
            f"{name} is not trained, it is data that goes with what is, and here it is "
            "differentiated: an optimiser on this tree would change it (weight decay does). "
            "Differentiate the trained arrays alone: trained, fixed = "
            "lora_jax.partition(trainable), then the gradient of trained -> loss(frozen, "
            "lora_jax.combine(trained, fixed), ...)."
        )
    return primals[0], tangents[0]


_data.defjvp(_data_jvp, symbolic_zeros=True)


def array_fields(leaf: Any, *, static: bool = False) -> tuple[str, ...]:
    """Names of the fields of a trainable leaf that hold arrays (or None); `static`, the others."""
    return tuple(
        field.name
        for field in dataclasses.fields(leaf)
        if field.metadata.get("pytree_node", True) is not static
    )


def misfit(leaf: Any) -> str | None:
    """The name of the first array of a leaf that does not go with the others by the shapes and
    dtypes that its class is annotated with; None if all of them fit.
    """
    wanted = inspect.get_annotations(type(leaf), eval_str=True)
    with jaxtyped("context"):  # in which equal names are equal sizes
        for name in given_fields(leaf):
            if not isinstance(getattr(leaf, name), wanted[name]):
                return name
    return None


def given_fields(leaf: Any) -> tuple[str, ...]:
    """Those of `array_fields` that hold an array."""
    return tuple(name for name in array_fields(leaf) if getattr(leaf, name) is not None)
