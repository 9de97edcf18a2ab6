"""The quantisation formats, one table: bits, the level of every code, ties, where published.

A format is a codebook (a level for each code) or a grid of integers. A block of weights is divided
by its scale, the largest magnitude in it, and each quotient gets the code of the nearest level. A
codebook of your own takes three lines:

    from lora_jax.core.codebooks import Format, register_format
    register_format(Format("thirds", 2, (-1.0, -1 / 3, 1 / 3, 1.0)))
    quantize(w, QuantSpec("thirds"))
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array

from lora_jax.core.paths import entry
from lora_jax.core.tables import register

Ties = Literal["lower", "zero", "even"]
FITS = ("range", "hqq", "entropy")  # how scales are chosen: `lora_jax.core.fits`


@dataclass(frozen=True)
class Format:
    """How a number in [-1, 1] becomes a code of `bits` bits.

    levels: the level of each code, in any order and unit (the largest magnitude becomes 1); NaN
        marks a code that is never used. None is a grid: the integers from -limit to limit, stored
        as integer + limit + 1, rounded half to even; with `offset` the integers from 0 to
        2**bits - 1, counted from the smallest weight of the block.
    ties: which of two equally near levels is taken: the 'lower' one, the one nearer 'zero', or
        the one with the 'even' code.
    zero_block: the code of a block of zeros: of 'zero', or the 'lowest' level, which also
        dequantises to 0.
    """

    name: str
    bits: int
    levels: tuple[float, ...] | None = None
    ties: Ties = "lower"
    offset: bool = False
    zero_block: Literal["zero", "lowest"] = "zero"
    source: str = ""

    @property
    def limit(self) -> int:
        """The largest integer of a grid: 127 for 8 bits, 7 for 4; with `offset` 255 and 15."""
        return 2**self.bits - 1 if self.offset else 2 ** (self.bits - 1) - 1

    @property
    def top(self) -> float:
        """The largest magnitude of the levels, in their own unit."""
        return float(self.limit if self.levels is None else np.nanmax(np.abs(self.levels)))

    def table(self, unit: float | None = None) -> np.ndarray:
        """Float32 level of every code, (2**bits,), in units of `unit` (None: of `top`)."""
        count = 2**self.bits
        if self.levels is not None:
            levels = np.asarray(self.levels, np.float64)
            levels = np.pad(levels, (0, count - len(levels)), constant_values=np.nan)
        else:
            levels = np.arange(count, dtype=np.float64) - (0 if self.offset else self.limit + 1)
        return (levels / (self.top if unit is None else unit)).astype(np.float32)

    def search(self, unit: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(codes by rising level, thresholds): x has the code at the number of thresholds < x."""
        table = self.table(unit)
        codes = [int(code) for code in np.flatnonzero(~np.isnan(table))]
        codes.sort(key=lambda code: (table[code], not np.signbit(table[code])))

        middle = midpoints(table[codes])
        for index, (low, high) in enumerate(zip(codes, codes[1:])):
            if table[low] == 0 == table[high]:
                # -0 is below +0. The largest negative number would do, but processors may flush it.
                middle[index] = -np.finfo(np.float32).tiny
            elif (self.ties == "even" and low % 2) or (self.ties == "zero" and middle[index] < 0):
                middle[index] = np.nextafter(middle[index], np.float32(-np.inf))
        return np.asarray(codes, np.uint8), middle

    @property
    def zero(self) -> int:
        """The code of the level nearest 0: of a grid, what is added to an integer."""
        return int(np.nanargmin(np.abs(self.table())))


def check_fit(format: Format, fit: str, scale_dtype: str) -> None:
    """Nothing, if scales of a format can be chosen so.

    Raises:
        ValueError: they cannot.
    """
    if fit != "range" and scale_dtype == "e8m0":
        raise ValueError(
            f"fit {fit!r} chooses scales freely, and scale_dtype 'e8m0' allows powers of two alone. "
            "Use 'float32' or 'bfloat16', or fit 'range'."
        )
    if fit == "entropy" and (format.offset or format.bits > 4):
        why = "has an offset of its own" if format.offset else f"has {format.bits} bits"
        raise ValueError(
            f"fit 'entropy' gives the blocks of a format of 2 to 4 bits an offset, and "
            f"{format.name!r} {why}. Take a format such as nf4, or fit 'hqq'."
        )


def look_up(table: np.ndarray, codes: Array) -> Array:
    """The table's entry for each code, all of which it has."""
    return jnp.asarray(table).at[codes.astype(jnp.int32)].get(mode="promise_in_bounds")


def bisected(x: Array, thresholds: np.ndarray) -> Array:
    """The number of sorted thresholds below each number, by halving without a gather."""
    depth = len(thresholds).bit_length()
    known = [*thresholds, *[np.float32(np.inf)] * (2**depth - 1 - len(thresholds))]
    above: list[Array] = []
    for level in reversed(range(depth)):
        middle = known[2**level - 1 :: 2 ** (level + 1)]
        for bit in reversed(above):  # The one of this level that the halves so far lead to.
            middle = [jnp.where(bit, high, low) for low, high in zip(middle[::2], middle[1::2])]
        above.append(x > middle[0])
    places = reversed(range(depth))
    return sum(bit.astype(jnp.int32) << place for bit, place in zip(above, places)).astype(
        jnp.uint8
    )


def midpoints(levels: np.ndarray) -> np.ndarray:
    """Float32 midpoints of sorted levels, taken in float64 so that they are rounded once."""
    wide = levels.astype(np.float64)
    return ((wide[:-1] + wide[1:]) / 2).astype(np.float32)


def normal_float(bits: int) -> tuple[float, ...]:
    """The 2**bits levels of NormalFloat by the construction that made the published NF4 values.

    Quantiles of the normal distribution at equally spaced probabilities, one more on the positive
    side than on the negative, and 0 (Dettmers et al. 2023, section 3; the offset as in
    bitsandbytes' `create_normal_map`).
    """
    n = 2**bits
    offset = 1 - (1 / (2 * n) + 1 / (2 * n - 2)) / 2
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(offset, 0.5, n // 2 + 1)[:-1]]
    negative = [-quantile(p) for p in np.linspace(offset, 0.5, n // 2)[:-1]]
    return tuple(value / positive[0] for value in sorted([*negative, 0.0, *positive]))


@functools.cache
def dynamic_map(signed: bool = True) -> np.ndarray:
    """The 256 sorted float32 values of the 8-bit map of block scales and of optimisers' moments.

    Signed, or from 0 up with twice as many values to a decade, for numbers that are never negative.

    Source: Dettmers et al. 2022, 8-bit optimisers (arXiv 2110.02861), section 2.1; bitsandbytes'
    `create_dynamic_map`, which computes in float32.
    """
    parts = []
    for exponent in range(7):
        edges = _float32_linspace(2 ** (exponent + (not signed)) + 1)
        parts.append((edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (exponent - 6)))
    values = np.concatenate(parts)
    both = [-values, values] if signed else [values]
    return np.sort(np.concatenate([*both, np.asarray([0.0, 1.0], np.float32)]))


def _float32_linspace(n: int) -> np.ndarray:
    """`torch.linspace(0.1, 1, n)`, whose steps are counted from both ends, to the last bit."""
    first, last, index = np.float64(np.float32(0.1)), 1.0, np.arange(n)
    step = np.float64((np.float32(1) - np.float32(0.1)) / np.float32(n - 1))
    numbers = np.where(index < n // 2, first + step * index, last - step * (n - 1 - index))
    return numbers.astype(np.float32)


def _signed(*magnitudes: float) -> tuple[float, ...]:
    """Levels by code where the highest bit of the code is the sign."""
    return (*magnitudes, *(-value for value in magnitudes))


def _float8(dtype: type) -> tuple[float, ...]:
    values = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64)
    return tuple(float(value) if math.isfinite(value) else math.nan for value in values)


_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_AF4 = (
    -1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0,
    0.04273164, 0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0,
)  # fmt: skip
_FP4 = _signed(0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
_FP4_E2M1 = _signed(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4_E3M0 = _signed(0.0, *(2.0**k for k in range(-2, 5)))
_QLORA = "Dettmers et al. 2023 (QLoRA, arXiv 2305.14314)"
_QA_LORA = "Xu et al. 2023 (QA-LoRA, arXiv 2309.14717)"
_OCP = "OCP Microscaling Formats (MX) 1.0, 2023"
_FP8 = f"{_OCP}; Micikevicius et al. 2022"

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        # bitsandbytes on CUDA divides a block of zeros by zero, and NaN is above no threshold.
        Format("nf4", 4, _NF4, zero_block="lowest", source=f"{_QLORA}, Appendix E"),
        Format("fp4", 4, _FP4, ties="zero", source="bitsandbytes"),
        Format("int8", 8, source="Dettmers et al. 2022 (LLM.int8(), arXiv 2208.07339), section 2"),
        Format("int4", 4, source=f"{_QLORA}, Table 2"),
        *(
            Format(f"nf{k}", k, normal_float(k), source=f"{_QLORA}, section 3")
            for k in (2, 3, 5, 6, 7, 8)
        ),
        Format("af4", 4, _AF4, source="Yoshida 2023 (arXiv 2306.06965), block size 64"),
        Format("fp4_e2m1", 4, _FP4_E2M1, ties="even", source=_OCP),
        Format("fp4_e3m0", 4, _FP4_E3M0, ties="even", source=f"{_QLORA}, Table 2"),
        Format("fp8_e4m3", 8, _float8(ml_dtypes.float8_e4m3fn), ties="even", source=_FP8),
        Format("fp8_e5m2", 8, _float8(ml_dtypes.float8_e5m2), ties="even", source=_FP8),
        *(Format(f"int{k}", k, source=f"{_QLORA}, Table 2, at {k} bits") for k in (2, 3, 5, 6, 7)),
        *(Format(f"int{k}_asym", k, offset=True, source=_QA_LORA) for k in (2, 3, 4, 8)),
    )
}


def register_format(format: Format) -> Format:
    """Adds a format to the table, for every function that takes a format's name.

    Raises:
        ValueError: the name is taken by another format, the bits are not 2 to 8, there are too many
            or too few levels, or a level is infinite.
    """
    known = FORMATS if format.name in FORMATS else {}  # What is wrong with it is said first.
    register(known, format.name, format, "quantisation format", differs="has other levels")
    if not 2 <= format.bits <= 8:
        raise ValueError(f"Format {format.name!r} must have 2 to 8 bits, got {format.bits}.")

    if format.levels is not None:
        used = [level for level in format.levels if not math.isnan(level)]
        fits = 2 <= len(used) <= len(format.levels) <= 2**format.bits
        if not fits or not all(map(math.isfinite, used)) or not any(used):
            raise ValueError(
                f"Format {format.name!r} with {format.bits} bits needs 2 to {2**format.bits} "
                f"finite levels, not all 0, got {len(format.levels)}. Write NaN for a code that is "
                "not used."
            )
        if format.offset:
            raise ValueError(
                f"Format {format.name!r} has levels and an offset; only a grid (levels=None) can "
                "have an offset."
            )
    return FORMATS.setdefault(format.name, format)


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        ValueError: there is none; near names are listed.
    """
    return entry(FORMATS, name, "quantisation format")
