"""Two 4-bit codes in a byte, the first of a pair in the high half (bitsandbytes' order)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, UInt8


def pack4(codes: UInt8[Array, "*stack n out"], fill: int = 0) -> UInt8[Array, "*stack half out"]:
    """Bytes of two codes each, paired along axis -2; an odd last row is paired with `fill`."""
    if codes.shape[-2] % 2:
        row = jnp.full((*codes.shape[:-2], 1, codes.shape[-1]), fill, jnp.uint8)
        codes = jnp.concatenate([codes, row], -2)
    pairs = codes.reshape(*codes.shape[:-2], -1, 2, codes.shape[-1])
    return (pairs[..., 0, :] << 4) | pairs[..., 1, :]


def unpack4(packed: UInt8[Array, "*stack half out"], n: int) -> UInt8[Array, "*stack n out"]:
    """The first `n` codes along axis -2."""
    pairs = jnp.stack([packed >> 4, packed & 15], -2)
    return pairs.reshape(*packed.shape[:-2], -1, packed.shape[-1])[..., :n, :]
