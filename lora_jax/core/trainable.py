"""The trainable tree: what is trained, by the path of the weight that it changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# By path of the weight; auxiliary modules (bottlenecks, gains, prefixes) by `path#name`.
Trainables = Mapping[str, Any]


def partition(trainable: Trainables) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that are trained and those that are not (scale, dropout, fixed factors), each with
    None where the other has one.
    """
    trained = {
        path: leaf.replace(**dict.fromkeys(set(array_fields(leaf)) - set(leaf.trained_fields())))
        for path, leaf in trainable.items()
    }
    fixed = {
        path: leaf.replace(**dict.fromkeys(leaf.trained_fields()))
        for path, leaf in trainable.items()
    }
    return trained, fixed


def combine(trained: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `partition`."""
    return {
        path: leaf.replace(
            **{name: getattr(trained[path], name) for name in given_fields(trained[path])}
        )
        for path, leaf in fixed.items()
    }


def array_fields(leaf: Any) -> tuple[str, ...]:
    """Names of the fields of a trainable leaf that hold arrays (or None), static ones left out."""
    return tuple(
        field.name for field in dataclasses.fields(leaf) if field.metadata.get("pytree_node", True)
    )


def given_fields(leaf: Any) -> tuple[str, ...]:
    """Those of `array_fields` that hold an array."""
    return tuple(name for name in array_fields(leaf) if getattr(leaf, name) is not None)
