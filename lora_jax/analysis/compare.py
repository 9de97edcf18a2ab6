"""Comparing arms: paired bootstrap intervals over the same examples, and the three verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lora_jax.evaluation.statistics import paired_means

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval."""

    value: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0

    def within(self, tolerance: float) -> bool:
        """Whether the whole interval lies in [-tolerance, tolerance]."""
        return -tolerance <= self.low and self.high <= tolerance


def paired_bootstrap(
    first: Any,
    second: Any,
    *,
    weights: Any = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean difference first - second with its percentile interval, examples drawn with
    replacement, both arms the same ones.

    Args:
        first, second: losses of the same examples: (examples,), or (seeds, examples), whose mean
        over seeds is taken first.
        weights: of the examples, (examples,): tokens, where a mean over tokens is meant.

    Raises:
        ValueError: the shapes differ, or an entry is not finite.
    """
    first, second = (
        np.atleast_2d(np.asarray(first, np.float64)),
        np.atleast_2d(np.asarray(second, np.float64)),
    )
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"A paired comparison needs the same examples in both arms, got {first.shape[-1]} and "
            f"{second.shape[-1]}."
        )
    difference = first.mean(0) - second.mean(0)
    if not np.isfinite(difference).all():
        raise ValueError(
            "A loss is not finite: an arm that diverged has no interval. Record it as diverged."
        )
    found = paired_means(
        first.mean(0),
        second.mean(0),
        None if weights is None else np.asarray(weights, np.float64),
        resamples=samples,
        level=level,
        seed=seed,
    )
    return Interval(found.value, found.low, found.high)


def judge_effect(signs: Sequence[float], interval: Interval, *, tolerance: float) -> Verdict:
    """The verdict on a claim that something is larger: `interval` and `signs` (one difference a
    seed) are positive where it holds.

    reproduced: positive in every seed, and the interval lies above 0. not reproduced: the interval
    lies below 0, or within the tolerance (too small to matter). Otherwise inconclusive.

    Raises:
        ValueError: there are fewer than 3 seeds.
    """
    if len(signs) < 3:
        raise ValueError(f"A verdict on an effect needs 3 seeds or more, got {len(signs)}.")
    if interval.low > 0 and min(signs) > 0:
        return "reproduced"
    return "not reproduced" if interval.high < 0 or interval.within(tolerance) else "inconclusive"


def judge_equal(interval: Interval, *, tolerance: float) -> Verdict:
    """The verdict on a claim that two things are equal: the interval lies within the tolerance, or
    wholly outside, or neither.
    """
    if interval.within(tolerance):
        return "reproduced"
    return (
        "not reproduced"
        if interval.low > tolerance or interval.high < -tolerance
        else "inconclusive"
    )


def judge_all(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim of several parts: all reproduced, or one not reproduced, or
    inconclusive.
    """
    if "not reproduced" in verdicts:
        return "not reproduced"
    return "reproduced" if all(verdict == "reproduced" for verdict in verdicts) else "inconclusive"
