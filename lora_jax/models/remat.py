"""Blocks that are computed again in the backward pass, and where what they keep waits until
then.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

_INPUT, _KEPT = "block_input", "kept"


def recomputed(
    block: type[nn.Module], *, scan: bool, keep: bool = False, offload: bool = False
) -> Any:
    """The block under nn.remat: its inputs are kept and all else is computed again in the backward
    pass. With `keep`, what the block names by `kept` is kept as well. With `offload`, the input
    that `mark_input` names waits in pinned host memory; the device holds that of one block at a
    time.
    """
    policies, policy = jax.checkpoint_policies, None
    if keep:
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
