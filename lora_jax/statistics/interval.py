"""Confidence intervals: of anything, of a mean over seeds, of a share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A value and its confidence limits."""

    value: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0

    def within(self, tolerance: float) -> bool:
        """Whether the whole interval lies in [-tolerance, tolerance]: two things are equivalent if
        that of their difference does.
        """
        return -tolerance <= self.low and self.high <= tolerance


class OverSeeds(NamedTuple):
    """Mean and sample standard deviation of runs that differ in their seed, with the interval of
    the mean (Student's t). With one run, deviation and limits are NaN.
    """

    mean: float
    deviation: float
    low: float
    high: float
    runs: int


def over_seeds(scores: Sequence[float], *, level: float = 0.95) -> OverSeeds:
    """Mean, deviation and interval of the scores of runs that differ in their seed.

    Raises:
        ValueError: there is no score.
    """
    from scipy.stats import t

    if not len(scores):
        raise ValueError("A mean over seeds needs at least one run, got none.")
    mean, count = float(np.mean(scores)), len(scores)
    if count == 1:
        return OverSeeds(mean, math.nan, math.nan, math.nan, 1)
    deviation = float(np.std(scores, ddof=1))
    half = float(t.ppf((1 + level) / 2, count - 1)) * deviation / math.sqrt(count)
    return OverSeeds(mean, deviation, mean - half, mean + half, count)


def share_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson's interval of a share, such as an accuracy on `trials` examples (Wilson 1927): sound
    near 0 and 1 too.

    Raises:
        ValueError: not 0 <= successes <= trials, or no trial.
    """
    from scipy.stats import binomtest

    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"A share needs 0 <= successes <= trials and a trial, got {successes} of {trials}."
        )
    low, high = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return Interval(successes / trials, float(low), float(high))
