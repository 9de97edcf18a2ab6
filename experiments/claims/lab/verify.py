"""Whether a claim that was run anew says what its kept result says, to the last digit that the
platform allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Of one platform: the same programs in the same order give the same numbers, but for a handful
# of sums that threads may take in another order.
SAME = 1e-5
# Of another processor or version of jax: sums differ in their last bits, training spreads that.
OTHER = 2e-2
_PLATFORM = ("versions", "device", "platform", "python", "cpu_count")


@dataclass(frozen=True)
class Comparison:
    """agrees: verdicts are the same and all figures within `tolerance`, relative; `largest` is the
    largest difference, at `where`.
    """

    agrees: bool
    same_platform: bool
    tolerance: float
    largest: float
    where: str

    def __str__(self) -> str:
        platform = "the same platform" if self.same_platform else "another platform"
        answer = "agrees" if self.agrees else "DIFFERS"
        at = f" at {self.where}" if self.where else ""
        return (
            f"{answer}: the largest relative difference is {self.largest:.1e}{at} "
            f"(allowed on {platform}: {self.tolerance:.0e})"
        )


def compare_results(kept: Mapping[str, Any], found: Mapping[str, Any]) -> Comparison:
    """The comparison of two results of one claim."""
    same = all(kept["environment"].get(k) == found["environment"].get(k) for k in _PLATFORM)
    tolerance = SAME if same else OTHER
    one, two = (dict(_numbers(result["figures"])) for result in (kept, found))
    apart = {key: _relative(one.get(key), two.get(key)) for key in {**one, **two}}
    where = max(apart, key=apart.__getitem__, default="")
    largest = apart.get(where, 0.0)
    verdicts = [[part["verdict"] for part in result["parts"]] for result in (kept, found)]
    if verdicts[0] != verdicts[1]:
        return Comparison(False, same, tolerance, largest, "the verdicts")
    return Comparison(largest <= tolerance, same, tolerance, largest, where)


def _relative(one: float | None, two: float | None) -> float:
    if one is None or two is None:
        return 0.0 if one is two else math.inf
    scale = max(abs(one), abs(two), 1e-3)
    return abs(one - two) / scale


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float | None]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _numbers(inner, f"{path}/{place}")
    elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield path, value
