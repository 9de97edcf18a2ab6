"""The layers of a model, in one scan or one after the other; which of them are computed again in the
backward pass, and where what they keep waits until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

_INPUT, _KEPT = "block_input", "kept"


def through_layers(
    model: Any,
    block: type[nn.Module],
    fields: Sequence[Any],
    count: int,
    x: Array,
    shared: Any,
    *,
    each: Sequence[Any] = (),
    past: Sequence[Any] = (),
    last: Mapping[str, Any] | None = None,
    keep: bool = False,
) -> tuple[Array, tuple[Any, ...]]:
    """`x` after `count` blocks, and what they make of `past`: an array or a tuple, as each came.

    Args:
        model: whose submodules the blocks become: with its `scan` one `layers` with a leading layer
            axis, else `layers_0`, ... With `remat` a block is computed again in the
            backward pass, with `offload` from an input that waits in host memory.
        fields: those that a block is built with.
        shared: what all blocks read.
        each, past: what every block has of its own, in arrays or tuples whose entries are layers.
        last: other fields of the last block, where blocks stand apart.
        keep: whether a block that is not under `remat` keeps only what it names by `kept`.
    """
    if model.remat or keep:
        block = _recomputed(block, scan=model.scan, remat=model.remat, offload=model.offload)
    own = (*each, *past)
    if model.scan:
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, *[0] * len(own)),
            length=count,
        )
        return layers(*fields, name="layers")(x, shared, *own)

    made = []
    for n in range(count):
        other = last if last is not None and n == count - 1 else {}
        layer = block(*fields, **other, name=f"layers_{n}")
        x, new = layer(x, shared, *(part[n] for part in own))
        made.append(new)
    # What came apart is not copied into a stack at every step.
    join = tuple if any(isinstance(part, tuple) for part in past) else jnp.stack
    return x, tuple(join(layers) for layers in zip(*made))


def _recomputed(block: type[nn.Module], *, scan: bool, remat: bool, offload: bool) -> Any:
    """The block under nn.remat: its inputs are kept, and what it names by `kept`; all else is
    computed again in the backward pass. With `remat` the inputs alone are kept; with `offload` the
    one that `mark_input` names waits in pinned host memory, and the device holds that of one block
    at a time.
    """
    policies, policy = jax.checkpoint_policies, None
    if not remat:
        policy = policies.save_only_these_names(_KEPT)
    elif offload:
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    return nn.remat(block, prevent_cse=not scan, policy=policy)


def mark_input(x: Array) -> Array:
    """`x`, named as what a recomputed block keeps."""
    return checkpoint_name(x, _INPUT)


def kept(x: Array) -> Array:
    """`x`, named as what takes too long to compute again: a product with a weight, what attention
    gives.
    """
    return checkpoint_name(x, _KEPT)
