"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864) and the ways to stretch them to
longer texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

RotaryScaling = Literal["none", "linear", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class Rotary:
    """The angles of a rotary embedding: `base` ** (-2 i / width) a position, for the first
    `fraction` of a head's channels.

    scaling: how the frequencies are stretched by `factor`.
        linear: all of them (position interpolation, Chen et al. 2023).
        llama3: wavelengths above original_positions / low_freq, none below original_positions /
            high_freq, between them a blend (Llama 3.1).
        yarn: by channel, ramped between `beta_fast` and `beta_slow` rotations in
            original_positions (Peng et al. 2023).
        longrope: channel by channel, by `short_factors` for texts within original_positions, else
            by `long_factors` (Phi-3).
    attention_factor: multiplies cosine and sine; None is what the scaling's paper gives (1 for all
        but yarn and longrope).
    """

    base: float = 10_000.0
    fraction: float = 1.0
    scaling: RotaryScaling = "none"
    factor: float = 1.0
    original_positions: int = 0
    low_freq: float = 1.0
    high_freq: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.scaling in ("llama3", "yarn", "longrope") and self.original_positions < 1:
            raise ValueError(
                f"Rotary scaling {self.scaling!r} needs original_positions, the length that the "
                "model was first trained on."
            )
        if self.scaling == "longrope" and (
            not self.short_factors or len(self.short_factors) != len(self.long_factors)
        ):
            raise ValueError(
                "Rotary scaling 'longrope' needs as many short as long factors, got "
                f"{len(self.short_factors)} and {len(self.long_factors)}."
            )


def rotary_angles(
    rotary: Rotary,
    head_dim: int,
    positions: Int[Array, "batch time"],
    last: Int[Array, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time half"], Float[Array, "batch time half"]]:
    """Cosine and sine of every position's angles in float32; `half` is half the number of channels
    that are rotated.

    Args:
        last: the last position of the text that each token belongs to, by default its row's: a
            text's own length chooses longrope's factors, for all its tokens.
    """
    width = rotated_channels(rotary, head_dim)
    frequencies = jnp.asarray(inverse_frequencies(rotary, width))
    if rotary.scaling == "longrope":
        long = _plain(rotary, width) / _factors(rotary.long_factors, width)
        last = positions.max(1, keepdims=True) if last is None else last
        is_long = (last >= rotary.original_positions)[..., None]
        frequencies = jnp.where(is_long, jnp.asarray(long, jnp.float32), frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    factor = attention_factor(rotary)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(
    x: Float[Array, "batch time heads dim"],
    cos: Float[Array, "batch time half"],
    sin: Float[Array, "batch time half"],
) -> Float[Array, "batch time heads dim"]:
    """`x` with its first 2 * half channels rotated; channel i turns with channel i + half. Computed
    in float32.
    """
    half = cos.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(
        x.dtype
    )
    return turned if not rest.shape[-1] else jnp.concatenate([turned, rest], -1)


def rotated_channels(rotary: Rotary, head_dim: int) -> int:
    """How many channels of a head are rotated."""
    return int(head_dim * rotary.fraction)


def inverse_frequencies(rotary: Rotary, width: int) -> Float[np.ndarray, " half"]:
    """Radians a position of each pair of channels, in float32; of 'longrope' those for short
    texts.
    """
    plain = _plain(rotary, width)
    if rotary.scaling == "linear":
        plain = plain / rotary.factor
    elif rotary.scaling == "llama3":
        plain = _llama3(rotary, plain)
    elif rotary.scaling == "yarn":
        plain = _yarn(rotary, plain, width)
    elif rotary.scaling == "longrope":
        plain = plain / _factors(rotary.short_factors, width)
    return plain.astype(np.float32)


def attention_factor(rotary: Rotary) -> float:
    """What cosine and sine are multiplied by."""
    if rotary.attention_factor is not None:
        return rotary.attention_factor
    if rotary.scaling == "yarn":
        if rotary.mscale and rotary.mscale_all_dim:
            return _mscale(rotary.factor, rotary.mscale) / _mscale(
                rotary.factor, rotary.mscale_all_dim
            )
        return _mscale(rotary.factor, 1.0)
    if rotary.scaling == "longrope" and rotary.factor > 1:
        return math.sqrt(1 + math.log(rotary.factor) / math.log(rotary.original_positions))
    return 1.0


def _plain(rotary: Rotary, width: int) -> np.ndarray:
    return 1.0 / (rotary.base ** (np.arange(0, width, 2, dtype=np.float64) / width))


def _llama3(rotary: Rotary, plain: np.ndarray) -> np.ndarray:
    turns = rotary.original_positions * plain / (2 * math.pi)
    kept = np.clip((turns - rotary.low_freq) / (rotary.high_freq - rotary.low_freq), 0, 1)
    return (1 - kept) * plain / rotary.factor + kept * plain


def _yarn(rotary: Rotary, plain: np.ndarray, width: int) -> np.ndarray:
    def channel(rotations: float) -> float:
        return (
            width
            * math.log(rotary.original_positions / (rotations * 2 * math.pi))
            / (2 * math.log(rotary.base))
        )

    low, high = channel(rotary.beta_fast), channel(rotary.beta_slow)
    if rotary.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / (high - low or 0.001), 0, 1)
    return ramp * plain / rotary.factor + (1 - ramp) * plain


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _factors(factors: tuple[float, ...], width: int) -> np.ndarray:
    if len(factors) != width // 2:
        raise ValueError(
            f"Rotary scaling 'longrope' needs a factor for each of {width // 2} pairs of channels, "
            f"got {len(factors)}."
        )
    return np.asarray(factors, np.float64)
