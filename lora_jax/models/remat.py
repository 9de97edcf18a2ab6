"""Blocks that are computed again in the backward pass, and where what they keep waits until then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

_INPUT = "block_input"


def recomputed(block: type[nn.Module], *, scan: bool, offload: bool) -> Any:
    """The block under nn.remat: its inputs are kept and all else is computed again. With `offload`, the input that
    `mark_input` names waits in pinned host memory; the device holds that of one block at a time.
    """
    policy = None
    if offload:
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[_INPUT], offload_src="device", offload_dst="pinned_host"
        )
    return nn.remat(block, prevent_cse=not scan, policy=policy)


def mark_input(x: Array) -> Array:
    """`x`, named as what a recomputed block keeps."""
    return checkpoint_name(x, _INPUT)


def activated(act: Callable[[Array], Array], up: Array, gate: Array | None = None) -> Array:
    """`act(up)`, or `act(gate) * up`. The backward pass computes it again: kept are the inputs, not the five pieces of a GELU's derivative."""
    return jax.checkpoint(act)(up) if gate is None else jax.checkpoint(lambda gate, up: act(gate) * up)(gate, up)
