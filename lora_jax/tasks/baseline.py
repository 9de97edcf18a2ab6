"""The papers' baselines by configuration: what they add to an encoder's trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.adapters import baselines
from lora_jax.adapters.sites import Site
from lora_jax.config import Config
from lora_jax.core.paths import flatten, unflatten
from lora_jax.core.trained_weight import TrainedWeight


def with_baseline(
    config: Config,
    settings: Any,
    sites: Mapping[str, Site],
    params: Mapping[str, Any],
    trees: tuple[dict[str, Any], dict[str, Any]],
    key: jax.Array,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The frozen and trained weights with those of the config's method added to the trained ones;
    weights that become trained leave the frozen ones.

    Args:
        settings: those of the model.

    Raises:
        ValueError: inserted tokens need more positions than the model has.
    """
    base = config.baseline
    if config.method.startswith("prefix"):
        room, longest = settings.max_positions, config.data.max_length
        inserted = base.prefix + base.infix
        if longest + inserted > room:
            raise ValueError(
                f"data.max_length {longest} and {inserted} inserted tokens need "
                f"{longest + inserted} positions, and {config.model.name} has {room}. Lower one."
            )
    added: dict[str, Any] = {}
    match config.method:
        case "top_layers":
            added = dict(baselines.top_layers(sites, params, base.top_layers))
            added |= {
                path: TrainedWeight(value=jnp.array(weight, copy=True))
                for path, weight in flatten(params).items()
                if path.startswith("pooler/")
            }
        case "bottleneck":
            added = dict(
                baselines.bottlenecks(sites, base.kind, base.size, dropped=base.dropped, key=key)
            )
        case "ia3":
            added = dict(baselines.ia3(sites))
        case "prefix_embedding":
            added = dict(baselines.prefix_embedding(sites, base.prefix, base.infix, key=key))
        case "prefix_layers":
            added = dict(baselines.prefix_layers(sites, base.prefix, base.infix, key=key))

    frozen, trained = trees
    kept = {
        path: leaf
        for path, leaf in flatten(frozen).items()
        if path not in added or not added[path].replaces
    }
    return unflatten(kept), trained | added
