"""Stacked layers as one array a layer, since a scan copies each layer's weights for every token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from lora_jax.core.paths import flatten, unflatten

_STACKED = "layers/"


def frozen_apart(frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of a model with scan as those of the same model without: `layers/...` becomes
    `layers_0/...`, `layers_1/...`.
    """
    return unflatten(_apart(flatten(frozen), 0))


def adapters_apart(trainable: Mapping[str, Any], axis: int) -> dict[str, Any]:
    """The same of adapters, whose arrays have `axis` axes before that of the layers."""
    return _apart(trainable, axis)


def _apart(flat: Mapping[str, Any], axis: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, leaf in flat.items():
        if not path.startswith(_STACKED):
            out[path] = leaf
            continue
        count = jax.tree.leaves(leaf)[0].shape[axis]
        for n in range(count):
            out[f"layers_{n}/{path.removeprefix(_STACKED)}"] = jax.tree.map(
                lambda x, n=n: x[(slice(None),) * axis + (n,)], leaf
            )
    return out
