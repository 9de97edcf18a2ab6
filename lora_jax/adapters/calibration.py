"""What data-driven initialisers read: moments of a site's inputs, gradients of its weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Array, Float

from lora_jax.adapters.recording import Recorded, token_weights
from lora_jax.adapters.sites import Site
from lora_jax.core.matrix import to_matrix
from lora_jax.core.paths import flatten, unflatten
from lora_jax.core.trained_weight import TrainedWeight


def input_moments(
    loss: Callable[..., Any],
    frozen: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
    sites: Sequence[Site],
) -> dict[str, Float[Array, "*stack in in"]]:
    """The mean second moment x x^T of each site's inputs, over the real tokens of the batches; for
    EVA and CorDA.

    Args:
        loss: `(frozen, trainable, batch, key) -> (sum of losses, anything)`; only what it depends
            on is measured.
        batches: with `mask` (batch, time) and `weight` (batch,), which leave padding and filler
            rows out, or without.

    Raises:
        ValueError: a site has no factored product, is no Dense or DenseGeneral, or no batch was
            given.
    """
    for site in sites:
        if not site.has_rule or site.kind not in ("Dense", "DenseGeneral"):
            raise ValueError(
                f"{site.path}: inputs can be measured at Dense and DenseGeneral sites with a rule, "
                f"and this is {site.kind}."
            )
    flat = flatten(frozen)
    probes = {
        site.path: jnp.zeros((*site.stack, site.rows, site.rows), jnp.float32) for site in sites
    }

    @jax.jit
    def moments(flat: Any, batch: Any) -> Any:
        mask, weight = batch.get("mask"), batch.get("weight")
        rows = [] if weight is None else [weight]
        tokens = [] if mask is None else [mask * (1.0 if weight is None else weight[:, None])]

        def total(probes: Any) -> Array:
            marked = {path: Recorded(base=flat[path], probe=p) for path, p in probes.items()}
            with token_weights(*tokens, *rows):
                return loss(unflatten(flat | marked), {}, batch, None)[0]

        count = tokens[0].sum() if tokens else jnp.ones(())
        return jax.grad(total)(probes), count

    return _mean(moments, flat, batches)


def weight_gradients(
    loss: Callable[..., Any],
    frozen: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
    sites: Sequence[Site],
) -> dict[str, Float[Array, "*stack in out"]]:
    """The gradient of the mean loss in each site's dense weight as (in, out) matrices; for LoRA-GA.

    The mean is over examples. A quantised weight is dequantised for it. Arguments as for
    `input_moments`.
    """
    paths = {site.path: site for site in sites}

    @jax.jit
    def gradients(flat: Any, batch: Any) -> Any:
        def total(weights: Any) -> Array:
            trained = {path: TrainedWeight(value=w) for path, w in weights.items()}
            return loss(unflatten(flat), trained, batch, None)[0]

        dense = {path: meta.unbox(flat[path]) for path in paths}
        weight = batch.get("weight")
        return jax.grad(total)(dense), jnp.ones(()) if weight is None else weight.sum()

    found = _mean(gradients, flatten(frozen), batches)
    return {
        path: to_matrix(grad, len(paths[path].shape), paths[path].in_axes)
        for path, grad in found.items()
    }


def eva_ranks(
    moments: Mapping[str, Float[Array, "*stack in in"]], rank: int, rho: float = 2.0
) -> dict[str, Any]:
    """How many columns EVA gives each matrix: those of the `rank * matrices` largest
    explained-variance ratios of all.

    No matrix gets more than `rank * rho` (rounded), some may get none. Apply it with `limit_ranks`
    to factors of rank `round(rank * rho)` and alpha times rho, so that the scale stays alpha /
    rank. Section 3.2 of Paischer et al. 2024.
    """
    most = round(rank * rho)
    ratios = {}
    for path, moment in moments.items():
        values = jnp.linalg.eigvalsh(moment)[..., ::-1]
        ratios[path] = (values / jnp.maximum(values.sum(-1, keepdims=True), 1e-30))[..., :most]
    every = jnp.concatenate([ratio.ravel() for ratio in ratios.values()])
    budget = rank * sum(ratio[..., 0].size for ratio in ratios.values())
    edge = jnp.sort(every)[::-1][min(budget, every.size) - 1]
    return {path: (ratio >= edge).sum(-1) for path, ratio in ratios.items()}


def limit_ranks(trainable: Mapping[str, Any], ranks: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter with only the first `ranks[path]` columns in use (scale 0 in the others)."""
    out = dict(trainable)
    for path in out.keys() & ranks.keys():
        used = jnp.arange(out[path].rank) < jnp.asarray(ranks[path])[..., None]
        out[path] = out[path].replace(scale=jnp.where(used, out[path].scale, 0.0))
    return out


def _mean(
    measure: Callable[..., Any], flat: Mapping[str, Any], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    total, count = None, 0.0
    for batch in batches:
        arrays = {name: jnp.asarray(value) for name, value in batch.items()}
        found, weight = measure(dict(flat), arrays)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        count = count + weight
    if total is None:
        raise ValueError("Nothing was measured: needed at least one batch.")
    return jax.tree.map(lambda x: x / jnp.maximum(count, 1.0), total)
