"""What other tools keep layer by layer, as our entries of the trainable tree, which hold all layers
of a stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.core.lowrank import LowRank
from lora_jax.core.trained_weight import TrainedWeight
from lora_jax.io.names import Index, Name


def low_rank(
    name: Name, layers: Mapping[Index, tuple[np.ndarray, np.ndarray, float]], **extra: Any
) -> LowRank:
    """The factors of a site out of (a, b, scale) of its layers, ranks padded to the largest; a
    layer that is not there has a scale of 0.

    Args:
        extra: other fields of `LowRank`.
    """
    rank = max(b.shape[0] for _, b, _ in layers.values())
    a = np.zeros((*name.stack, name.rows, rank), np.float32)
    b = np.zeros((*name.stack, rank, name.columns), np.float32)
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
