"""The verdicts on a difference, by its interval and limits that were fixed before the run."""

from __future__ import annotations

from lab.claim import Verdict
from lab.contrast import Contrast

LEAST_SEEDS = 3


def judge_effect(found: Contrast, smallest: float = 0.0) -> Verdict:
    """The verdict on a claim that something is larger, where `found` is positive if it holds.

    reproduced: the 95 % interval lies above 0, and the value is at least the smallest effect of
    interest. opposite: the interval lies below 0. not reproduced: it lies below the smallest
    effect: there may be one, but too small to matter. Otherwise inconclusive.

    Raises:
        ValueError: there are fewer than 3 seeds, or the smallest effect is negative.
    """
    _check(found, smallest)
    interval = found.interval()
    if interval.low > 0 and interval.value >= smallest:
        return "reproduced"
    if interval.high < 0:
        return "opposite"
    return "not reproduced" if interval.high < smallest else "inconclusive"


def judge_equal(found: Contrast, margin: float) -> Verdict:
    """The verdict on a claim that two things are equal, by two one-sided tests at 5 %.

    reproduced: the 90 % interval of their difference lies within the margin. not reproduced: it
    lies wholly outside. Otherwise inconclusive.

    Raises:
        ValueError: there are fewer than 3 seeds, or the margin is not above 0.
    """
    _check(found, margin, positive=True)
    interval = found.interval(0.9)
    if interval.within(margin):
        return "reproduced"
    outside = interval.low > margin or interval.high < -margin
    return "not reproduced" if outside else "inconclusive"


def judge_not_worse(found: Contrast, margin: float) -> Verdict:
    """The verdict on a claim that something is as good as another, where `found` is how much worse
    it is: reproduced if that is below the margin (one-sided, 5 %), not reproduced if above.

    Raises:
        ValueError: there are fewer than 3 seeds, or the margin is not above 0.
    """
    _check(found, margin, positive=True)
    interval = found.interval(0.9)
    if interval.high < margin:
        return "reproduced"
    return "not reproduced" if interval.low > margin else "inconclusive"


def _check(found: Contrast, limit: float, *, positive: bool = False) -> None:
    if found.seeds < LEAST_SEEDS:
        raise ValueError(f"A verdict needs {LEAST_SEEDS} seeds or more, got {found.seeds}.")
    if limit < 0 or (positive and limit == 0):
        raise ValueError(
            f"A margin is above 0, and a smallest effect at least 0, got {limit:g}: an arm that "
            "gains nothing on the untuned model gives no measure of what matters."
        )
