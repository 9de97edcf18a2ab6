"""Optimiser state in host memory: slower, and the accelerator's memory is left to the model."""

from __future__ import annotations

from typing import Any

import jax
import optax

MIN_SIZE = 4096  # numbers; smaller arrays are not worth a transfer


def in_host_memory(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx` with the large arrays of its state in host memory between steps: bitsandbytes' paged
    optimisers, without their paging.

    Each update copies the state to the device and back; nothing else about it changes. A state that
    is restored or built otherwise has to be placed as `init` places it: `like_placed` does that.
    """
    tx = optax.with_extra_args_support(tx)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, _moved(state, jax.memory.Space.Device), params, **extra)
        return updates, _moved(state, jax.memory.Space.Host)

    init = lambda params: _moved(tx.init(params), jax.memory.Space.Host)
    return optax.GradientTransformationExtraArgs(init, update)


def shapes_in_host_memory(state: Any) -> Any:
    """Shapes of a state, those that `in_host_memory` keeps there said to be there."""

    def waiting(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        here = x.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return x.update(sharding=here.with_memory_kind("pinned_host"))

    return jax.tree.map(lambda x: waiting(x) if x.size >= MIN_SIZE else x, state)


def like_placed(array: jax.Array, like: Any) -> jax.Array:
    """The array where `like` is: in its memory, and on its devices."""
    is_there = not isinstance(like, jax.Array) or array.sharding == like.sharding
    return array if is_there else jax.device_put(array, like.sharding)


def _moved(state: Any, space: jax.memory.Space) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x, space) if x.size >= MIN_SIZE else x, state)
