"""QA-LoRA's merge: an update that is constant over a block moves its zero-point, and no code."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from lora_jax.core.lowrank import LowRank
from lora_jax.core.quantize import QuantizedArray


def fold_into_zeros(stored: QuantizedArray, low: LowRank) -> QuantizedArray:
    """The quantised weight of the same codes and scales that is `stored` plus the update of `low`.

    A weight of an asymmetric format is `code * scale + zero`, and QA-LoRA's update is the same
    number for all inputs of a group: added to the zeros of the group's blocks it is exact up to
    float32's rounding (Xu et al. 2023, arXiv 2309.14717, section 3.3).

    Raises:
        ValueError: the format has no zeros, they are stored in fewer bits than float32, a group is
            no whole number of blocks, or the adapter has a magnitude.
    """
    zero: Any = stored.zero
    if zero is None:
        raise ValueError(
            f"QA-LoRA folds into zero-points, and format {stored.spec.format!r} has none. Quantise "
            "to an asymmetric one (int4_asym)."
        )
    if getattr(zero, "dtype", None) != jnp.float32:
        raise ValueError(
            "QA-LoRA folds into zeros that are stored in float32: quantise with double=False and "
            "scale_dtype='float32'."
        )
    scaled = stored.in_scale is not None or low.magnitude is not None
    if scaled or stored.spec.rotation != "none" or stored.in_axes != low.in_axes:
        raise ValueError(
            "QA-LoRA folds a plain update into plain zeros: no magnitude, no scaled or rotated "
            "inputs, and the weight's own input axes."
        )

    block = stored.spec.block_size or low.rows
    if low.group % block:
        raise ValueError(
            f"QA-LoRA needs groups of whole blocks: group_size {low.group} is no multiple of "
            f"block_size {block}. Use group_size={block}."
        )
    # One row a group: all rows of a group are equal.
    grouped = low.replace(group=1).delta()
    moved = jnp.repeat(grouped, low.group // block, axis=-2)[..., : zero.shape[-2], :]
    return stored.replace(zero=zero + moved)
