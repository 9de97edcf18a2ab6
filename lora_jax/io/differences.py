"""Whether a configuration that was read says what the one that was written says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import numpy as np

from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.rotary import Rotary, attention_factor, inverse_frequencies, rotated_channels

# Fields of a decoder that are told in several ways.
_BY_MEANING = ("rotary", "local_rotary", "local_layers", "query_scale")


def differences(ours: Any, read: Any, *, ignored: Collection[str] = ()) -> list[str]:
    """What a reader would take for something else, field by field.

    Args:
        ignored: fields that files do not say.
    """
    odd = []
    by_meaning = _BY_MEANING if isinstance(ours, DecoderConfig) else ()
    for field in dataclasses.fields(ours):
        mine, theirs = getattr(ours, field.name), getattr(read, field.name)
        if field.name in (*ignored, *by_meaning) or mine == theirs:
            continue
        numbers = isinstance(mine, float) and isinstance(theirs, float)
        if numbers and math.isclose(mine, theirs, rel_tol=1e-5):
            continue
        odd.append(f"{field.name} {mine!r} would be read as {theirs!r}")
    return odd + _decoder_differences(ours, read) if by_meaning else odd


def _decoder_differences(ours: DecoderConfig, read: DecoderConfig) -> list[str]:
    odd = []
    if ours.locality != read.locality:
        odd.append(f"local layers {ours.locality} would be read as {read.locality}")
    if not math.isclose(_scale(ours), _scale(read), rel_tol=1e-5):
        odd.append(f"query_scale {_scale(ours):.6g} would be read as {_scale(read):.6g}")
    if not _same(ours.rotary, read.rotary, ours.head_dim):
        odd.append(f"{ours.rotary} would be read as {read.rotary}")
    if any(ours.locality) and not _same(
        ours.local_rotary or ours.rotary, read.local_rotary or read.rotary, ours.head_dim
    ):
        odd.append(f"in local layers {ours.local_rotary} would be read as {read.local_rotary}")
    return odd


def _scale(config: DecoderConfig) -> float:
    return config.head_dim**-0.5 if config.query_scale is None else config.query_scale


def _same(one: Rotary | None, other: Rotary | None, head_dim: int) -> bool:
    """Whether two rotary embeddings turn alike, however they are told; to float32's accuracy."""
    if one is None or other is None:
        return one is other
    width = rotated_channels(one, head_dim)
    if rotated_channels(other, head_dim) != width or not math.isclose(
        attention_factor(one), attention_factor(other), rel_tol=1e-5
    ):
        return False
    near = np.allclose(
        inverse_frequencies(one, width), inverse_frequencies(other, width), rtol=1e-6, atol=0
    )
    long = [
        np.divide(r.long_factors, r.short_factors) if r.long_factors else np.ones(width // 2)
        for r in (one, other)
    ]
    if not near or not np.allclose(*long, rtol=1e-6):
        return False
    return bool(np.all(long[0] == 1)) or one.original_positions == other.original_positions
