"""What other tools keep layer by layer, as our entries of the trainable tree, which hold all layers
of a stack.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.core.lowrank import LowRank
from lora_jax.core.trained_weight import TrainedWeight
from lora_jax.io.names import Index, Name, Names
from lora_jax.io.tensors import check_finite


def low_rank(
    name: Name, layers: Mapping[Index, tuple[np.ndarray, np.ndarray, float]], **extra: Any
) -> LowRank:
    """The factors of a site out of (a, b, scale) of its layers, ranks padded to the largest; a
    layer that is not there has a scale of 0.

    Args:
        extra: other fields of `LowRank`.
    """
    rank = max(b.shape[0] for _, b, _ in layers.values())
    some_a, some_b, _ = next(iter(layers.values()))  # Of a block, under LoKr.
    a = np.zeros((*name.stack, len(some_a), rank), np.float32)
    b = np.zeros((*name.stack, rank, some_b.shape[1]), np.float32)
    scale = np.zeros((*name.stack, rank), np.float32)
    for index, (own_a, own_b, own_scale) in layers.items():
        own = own_b.shape[0]
        a[index][:, :own], b[index][:own], scale[index][:own] = own_a, own_b, own_scale
    arrays = dict(a=jnp.asarray(a), b=jnp.asarray(b), scale=jnp.asarray(scale))
    return LowRank(**arrays, in_axes=name.in_axes, **extra)


def trained_weight(path: str, name: Name, layers: Mapping[Index, np.ndarray]) -> TrainedWeight:
    """The weight of a site out of that of its layers.

    Raises:
        ValueError: one of the layers is not there.
    """
    indices = [index for index, _ in name.layers()]
    if missing := [index for index in indices if index not in layers]:
        raise ValueError(
            f"{path!r} is trained whole for {len(layers)} of {len(indices)} layers (not for "
            f"{missing[0]}), and a stack of layers is trained whole or not at all. Load it into "
            "the layout without a scan, or complete the checkpoint."
        )
    value = np.stack([layers[index] for index in indices])
    return TrainedWeight(value=jnp.asarray(value.reshape(*name.stack, *name.shape)))


def check_numbers(tensors: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError if a tensor does not hold floating numbers, or a NaN or an infinity."""
    for key, value in tensors.items():
        if not np.issubdtype(value.dtype, np.floating):
            raise ValueError(
                f"{key} has dtype {value.dtype}; factors are floating numbers. Save the adapter "
                "again."
            )
    check_finite(tensors, ". Load a sound checkpoint.")


def fitted(key: str, value: np.ndarray, convert: Any) -> np.ndarray:
    """One layer's array by `convert`, a method of its `Name`.

    Raises:
        ValueError: it has another shape; the error names it.
    """
    try:
        return convert(np.asarray(value, np.float32))
    except ValueError as error:
        raise ValueError(
            f"{key} does not fit the model: {error}. The adapter is for another model."
        ) from None


def renamed(names: Names, tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The file's name of each of our modules: the same, or with one leading prefix more or less."""
    ours = {module for name in names.values() for _, module in name.modules()}
    theirs = {module_of_key(key) for key in tensors}
    shorter: dict[str, list[str]] = {}
    for module in ours:
        for prefix, rest in _cuts(module):
            shorter.setdefault(rest, []).append(prefix)
    changes: Counter[tuple[str, str]] = Counter()
    for module in theirs:
        changes.update((prefix, "") for prefix in shorter.get(module, ()))
        changes.update(("", prefix) for prefix, rest in _cuts(module) if prefix and rest in ours)
    if not changes:
        return {module: module for module in ours}
    old, new = max(changes, key=lambda change: (changes[change], change == ("", "")))
    return {
        module: new + module.removeprefix(old) if module.startswith(old) else module
        for module in ours
    }


def _cuts(module: str) -> list[tuple[str, str]]:
    pieces = module.split(".")
    return [
        (".".join([*pieces[:count], ""]), ".".join(pieces[count:]))
        for count in range(min(3, len(pieces)))
    ]


def module_of_key(key: str) -> str:
    """The module that a tensor belongs to, in PEFT's files and in loralib's."""
    for marker in (".lora_", ".oft_", ".base_layer.", ".token_adapter."):
        if marker in key:
            return key.partition(marker)[0]
    return key.rpartition(".")[0]
