"""Codes of 2 to 8 bits in bytes, with no bit wasted.

A code is cut into planes of 4, 2 or 1 bits (3 = 2 + 1, 7 = 4 + 2 + 1), highest bits first, since
parts of a size that divides 8 are packed and unpacked with whole-array shifts. In a plane, the
first of the codes that share a byte has its highest bits: for 4 bits that is bitsandbytes' order.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, UInt8

PLANES: dict[int, tuple[int, ...]] = {
    2: (2,),
    3: (2, 1),
    4: (4,),
    5: (4, 1),
    6: (4, 2),
    7: (4, 2, 1),
    8: (8,),
}


def packed_rows(n: int, bits: int) -> int:
    """Rows of bytes that `n` rows of codes take."""
    return sum(-(-n * width // 8) for width in PLANES[bits])


def pack(
    codes: UInt8[Array, "*stack n out"], bits: int, fill: int = 0
) -> UInt8[Array, "*stack packed out"]:
    """The bytes of all planes, one plane after the other along axis -2.

    A short last byte is completed with `fill`.
    """
    planes, below = [], bits
    for width in PLANES[bits]:
        below -= width
        mask = 2**width - 1
        planes.append(_pack_plane((codes >> below) & mask, width, (fill >> below) & mask))
    return planes[0] if len(planes) == 1 else jnp.concatenate(planes, -2)


def unpack(
    packed: UInt8[Array, "*stack packed out"], bits: int, n: int
) -> UInt8[Array, "*stack n out"]:
    """The first `n` codes along axis -2."""
    codes, start = None, 0
    for width in PLANES[bits]:
        stop = start + -(-n * width // 8)
        plane = _unpack_plane(packed[..., start:stop, :], width, n)
        codes, start = plane if codes is None else (codes << width) | plane, stop
    return codes


def _pack_plane(codes: Array, width: int, fill: int) -> Array:
    each = 8 // width
    if each == 1:
        return codes
    short = -codes.shape[-2] % each
    if short:
        rows = jnp.full((*codes.shape[:-2], short, codes.shape[-1]), fill, jnp.uint8)
        codes = jnp.concatenate([codes, rows], -2)
    groups = codes.reshape(*codes.shape[:-2], -1, each, codes.shape[-1])
    packed = groups[..., 0, :]
    for index in range(1, each):
        packed = (packed << width) | groups[..., index, :]
    return packed


def _unpack_plane(packed: Array, width: int, n: int) -> Array:
    each = 8 // width
    if each == 1:
        return packed
    parts = [(packed >> (8 - width * (index + 1))) & (2**width - 1) for index in range(each)]
    return jnp.stack(parts, -2).reshape(*packed.shape[:-2], -1, packed.shape[-1])[..., :n, :]
