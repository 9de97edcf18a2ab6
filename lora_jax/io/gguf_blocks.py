"""The block formats of GGUF tensors: how many bytes a block has, and the numbers in it (llama.cpp,
ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from jaxtyping import Float, UInt8

_K = 256  # weights of a super-block of the K formats


@dataclass(frozen=True)
class BlockFormat:
    """`weights` numbers stored in `bytes` bytes; `read` turns (blocks, bytes) into (blocks,
    weights).
    """

    name: str
    weights: int
    bytes: int
    read: Callable[[np.ndarray], np.ndarray]


def _half(b: UInt8[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 1"]:
    return np.ascontiguousarray(b).view(np.float16).astype(np.float32)


def _nibbles(b: np.ndarray) -> np.ndarray:
    """Low halves of the bytes, then high halves."""
    return np.concatenate([b & 15, b >> 4], -1)


def _q4_0(b: np.ndarray) -> np.ndarray:
    return _half(b[:, :2]) * (_nibbles(b[:, 2:]).astype(np.float32) - 8)


def _q4_1(b: np.ndarray) -> np.ndarray:
    return _half(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b[:, 2:4])


def _fifth_bits(b: UInt8[np.ndarray, "n 4"]) -> np.ndarray:
    return np.unpackbits(b, axis=-1, bitorder="little")


def _q5_0(b: np.ndarray) -> np.ndarray:
    codes = _nibbles(b[:, 6:]) | (_fifth_bits(b[:, 2:6]) << 4)
    return _half(b[:, :2]) * (codes.astype(np.float32) - 16)


def _q5_1(b: np.ndarray) -> np.ndarray:
    codes = _nibbles(b[:, 8:]) | (_fifth_bits(b[:, 4:8]) << 4)
    return _half(b[:, :2]) * codes.astype(np.float32) + _half(b[:, 2:4])


def _q8_0(b: np.ndarray) -> np.ndarray:
    return _half(b[:, :2]) * np.ascontiguousarray(b[:, 2:]).view(np.int8).astype(np.float32)


def _two_bits(b: UInt8[np.ndarray, "n 64"]) -> np.ndarray:
    """256 codes: of each half of 32 bytes, the lowest two bits of all bytes, then the next two,
    ...
    """
    halves = b.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return (halves & 3).reshape(-1, _K)


def _q2_k(b: np.ndarray) -> np.ndarray:
    scales, codes = b[:, :16], _two_bits(b[:, 16:80])
    d, dmin = _half(b[:, 80:82]), _half(b[:, 82:84])
    scale = np.repeat(d * (scales & 15).astype(np.float32), 16, -1)
    least = np.repeat(dmin * (scales >> 4).astype(np.float32), 16, -1)
    return scale * codes.astype(np.float32) - least


def _q3_k(b: np.ndarray) -> np.ndarray:
    mask, low, packed, d = b[:, :32], _two_bits(b[:, 32:96]), b[:, 96:108], _half(b[:, 108:110])
    # 16 scales of 6 bits: four bits each in bytes 0-7, two bits each in bytes 8-11.
    high = (packed[:, None, 8:12] >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)) & 3
    scales = (_nibbles(packed[:, :8]) | (high.reshape(-1, 16) << 4)).astype(np.float32) - 32
    bits = (mask[:, None, :] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & 1
    codes = low.astype(np.float32) - 4 * (1 - bits.reshape(-1, _K).astype(np.float32))
    return np.repeat(d * scales, 16, -1) * codes


def _scales_and_mins(packed: UInt8[np.ndarray, "n 12"]) -> tuple[np.ndarray, np.ndarray]:
    """8 scales and 8 minima of 6 bits in 12 bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], -1)
    mins = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], -1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _four_bits(b: UInt8[np.ndarray, "n 128"]) -> np.ndarray:
    return _nibbles(b.reshape(-1, 4, 32)).reshape(-1, _K)


def _q4_k(b: np.ndarray) -> np.ndarray:
    scales, mins = _scales_and_mins(b[:, 4:16])
    codes = _four_bits(b[:, 16:144]).astype(np.float32)
    least = np.repeat(_half(b[:, 2:4]) * mins, 32, -1)
    return np.repeat(_half(b[:, :2]) * scales, 32, -1) * codes - least


def _q5_k(b: np.ndarray) -> np.ndarray:
    scales, mins = _scales_and_mins(b[:, 4:16])
    fifth = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & 1
    codes = (_four_bits(b[:, 48:176]) | (fifth.reshape(-1, _K) << 4)).astype(np.float32)
    least = np.repeat(_half(b[:, 2:4]) * mins, 32, -1)
    return np.repeat(_half(b[:, :2]) * scales, 32, -1) * codes - least


def _q6_k(b: np.ndarray) -> np.ndarray:
    low = _nibbles(b[:, :128].reshape(-1, 2, 64)).reshape(-1, _K)
    codes = (low | (_two_bits(b[:, 128:192]) << 4)).astype(np.float32) - 32
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    return np.repeat(_half(b[:, 208:210]) * scales, 16, -1) * codes


def _plain(dtype: type) -> Callable[[np.ndarray], np.ndarray]:
    return lambda b: np.ascontiguousarray(b).view(dtype)


FORMATS: dict[int, BlockFormat] = {
    0: BlockFormat("F32", 1, 4, _plain(np.float32)),
    1: BlockFormat("F16", 1, 2, _plain(np.float16)),
    2: BlockFormat("Q4_0", 32, 18, _q4_0),
    3: BlockFormat("Q4_1", 32, 20, _q4_1),
    6: BlockFormat("Q5_0", 32, 22, _q5_0),
    7: BlockFormat("Q5_1", 32, 24, _q5_1),
    8: BlockFormat("Q8_0", 32, 34, _q8_0),
    10: BlockFormat("Q2_K", _K, 84, _q2_k),
    11: BlockFormat("Q3_K", _K, 110, _q3_k),
    12: BlockFormat("Q4_K", _K, 144, _q4_k),
    13: BlockFormat("Q5_K", _K, 176, _q5_k),
    14: BlockFormat("Q6_K", _K, 210, _q6_k),
    30: BlockFormat("BF16", 1, 2, _plain(ml_dtypes.bfloat16)),
}
# Types of the format that are not read here, so that errors can name them.
OTHERS = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
