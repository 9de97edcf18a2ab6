"""The pretrained weights of a task: where they lie, not what they hold."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from lora_jax.core.host import StoredWeight
from lora_jax.core.paths import unflatten
from lora_jax.io.named_weights import dtype_of
from lora_jax.io.weights import StoredModel


def params_of(stored: StoredModel) -> dict[str, Any]:
    """The params as a tree of weights that are read when they are asked for; new ones are there."""
    flat: dict[str, Any] = {
        path: StoredWeight(
            (*name.stack, *name.shape),
            dtype_of(name, stored.dtype),
            functools.partial(stored.leaf, path),
        )
        for path, name in stored.names.items()
    }
    return unflatten(flat | dict(stored.new))


def shapes_of(params: Any) -> Any:
    """The tree with the shape and dtype of every weight in its place."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), params)
