"""The quantisation formats, one table: bits, levels by code, where a value is cut.

A format is a codebook (levels between -1 and 1, one a code) or a linear grid. Weights are divided by their block's largest
magnitude first. Sources: NF4 is QLoRA, Dettmers et al. 2023, Appendix E; FP4 is bitsandbytes' (sign, 2 exponent bits, 1 mantissa
bit); the dynamic map of the scales is Dettmers et al. 2022 (8-bit optimisers, arXiv 2110.02861), section 2.1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from lora_jax.core.paths import nearest


@dataclass(frozen=True)
class Format:
    """How a number in [-1, 1] becomes a code.

    A codebook format has `levels`, by code. A linear format has none: code = round(value * limit) + limit + 1, ties to even.
    `sign_bit` says that the highest bit of a code is the sign (ties go to the smaller magnitude); otherwise ties go to the
    lower level. Both rules are bitsandbytes' on CUDA.
    """

    name: str
    bits: int
    levels: tuple[float, ...] | None = None
    sign_bit: bool = False

    @property
    def limit(self) -> int:
        """The largest integer of a linear format: 127 for 8 bits, 7 for 4."""
        return 2 ** (self.bits - 1) - 1

    def table(self) -> np.ndarray:
        """Float32 level of every code, shape (2**bits,)."""
        if self.levels is not None:
            return np.asarray(self.levels, np.float32)
        return ((np.arange(2**self.bits) - self.limit - 1) / self.limit).astype(np.float32)


_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4_MAGNITUDES = tuple(value / 12 for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format("nf4", 4, _NF4),
        Format("fp4", 4, _FP4_MAGNITUDES + tuple(-value for value in _FP4_MAGNITUDES), sign_bit=True),
        Format("int8", 8),
        Format("int4", 4),
    )
}


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        ValueError: there is none; near names are listed.
    """
    if name not in FORMATS:
        raise ValueError(
            f"Unknown quantisation format {name!r}. Formats are {', '.join(FORMATS)}; nearest: {nearest(name, FORMATS, 1)[0]!r}."
        )
    return FORMATS[name]


@functools.cache
def dynamic_map() -> np.ndarray:
    """The 256 sorted float32 values of the signed dynamic 8-bit map, in which block scales are stored."""
    positive = [
        (edge[:-1] + edge[1:]) / 2 * 10.0 ** (exponent - 6) for exponent in range(7) for edge in [np.linspace(0.1, 1, 2**exponent + 1)]
    ]
    values = np.concatenate(positive)
    return np.sort(np.concatenate([-values, values, [0.0, 1.0]])).astype(np.float32)


def midpoints(levels: np.ndarray) -> np.ndarray:
    """Float32 midpoints of sorted levels, taken in float64 so that they are rounded once."""
    wide = levels.astype(np.float64)
    return ((wide[:-1] + wide[1:]) / 2).astype(np.float32)
