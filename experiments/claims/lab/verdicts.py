"""The difference of two arms with its interval, and the three verdicts on a claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lora_jax.statistics.bootstrap import paired_means
from lora_jax.statistics.interval import Interval

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]


def paired_losses(
    first: Any, second: Any, *, weights: Any = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean difference first - second with its 95% interval, the same examples drawn for both.

    Args:
        first, second: losses of the same examples: (examples,), or (seeds, examples), whose mean
            over seeds is taken first.
        weights: of the examples, (examples,): tokens, where a mean over tokens is meant.

    Raises:
        ValueError: the shapes differ, or an entry is not finite.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    weights = None if weights is None else np.asarray(weights, np.float64)
    found = paired_means(one, other, weights, resamples=resamples, seed=seed)
    if not math.isfinite(found.value):
        raise ValueError(
            "A loss is not finite: an arm that diverged has no interval. Record it as diverged."
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
