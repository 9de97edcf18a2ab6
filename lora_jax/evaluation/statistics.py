"""How sure a score is, and whether two models differ: bootstrap intervals and paired tests on the
same examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

Statistic = Callable[
    [Int[np.ndarray, " drawn"]], float
]  # a score of the examples at these positions


class Interval(NamedTuple):
    """A score on all examples, with the bounds between which it falls in `level` of the
    resamples.
    """

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """The score of one model less that of another, its interval, and the two-sided p-value of no
    difference.
    """

    value: float
    low: float
    high: float
    p: float


class McNemar(NamedTuple):
    """Examples that only the first, and only the second model gets right, and the exact two-sided
    p-value of no difference.
    """

    first_only: int
    second_only: int
    p: float


class OverSeeds(NamedTuple):
    """Mean and sample standard deviation of runs that differ in their seed, with the interval of
    the mean (Student's t).
    """

    mean: float
    deviation: float
    low: float
    high: float
    runs: int


def draws(examples: int, resamples: int, seed: int) -> Iterator[Int[np.ndarray, " examples"]]:
    """The positions that each resample draws, with replacement, one resample after the other. They
    follow from the arguments.

    Raises:
        ValueError: there are no examples, or fewer than 1 resample.
    """
    if examples < 1 or resamples < 1:
        raise ValueError(
            f"A bootstrap needs at least one example and one resample, got {examples} and "
            f"{resamples}."
        )
    rng = np.random.default_rng(seed)
    return (rng.integers(0, examples, examples, dtype=np.int32) for _ in range(resamples))


def bootstrap(
    statistic: Statistic,
    examples: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of any score of a set of examples (Efron & Tibshirani 1993, section
    13.3).

    The interval says how much the score would vary over test sets of this size; not over training
    runs.
    """
    values = np.array([statistic(rows) for rows in draws(examples, resamples, seed)])
    return Interval(float(statistic(np.arange(examples, dtype=np.int32))), *_bounds(values, level))


def mean_interval(
    scores: Float[np.ndarray, " examples"],
    weights: Float[np.ndarray, " examples"] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """As `bootstrap`, of the mean of scores weighted by `weights` (a loss a token: the tokens of
    each example).
    """
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, float)
    means = _resampled_means(np.asarray(scores, float), weights, resamples, seed)
    return Interval(_ratio((scores * weights).sum(), weights.sum()), *_bounds(means, level))


def paired_bootstrap(
    first: Statistic,
    second: Statistic,
    examples: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """The difference of two models' scores on the same examples, each resample drawn once for both.

    p is the share of resamples whose difference is as far from the observed one as that is from 0
    (Berg-Kirkpatrick, Burkett & Klein 2012, two-sided; Koehn 2004), the observed one counted: never
    below 1 / (resamples + 1).
    """
    everything = np.arange(examples, dtype=np.int32)
    observed = float(first(everything)) - float(second(everything))
    return _difference(
        observed,
        np.array([first(rows) - second(rows) for rows in draws(examples, resamples, seed)]),
        level,
    )


def paired_means(
    first: Float[np.ndarray, " examples"],
    second: Float[np.ndarray, " others"],
    weights: Float[np.ndarray, " examples"] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """As `paired_bootstrap`, of the difference of two weighted means.

    Raises:
        ValueError: the models were not scored on equally many examples.
    """
    if len(first) != len(second):
        raise ValueError(
            f"A paired test needs the same examples for both models, got {len(first)} and "
            f"{len(second)}."
        )
    weights = np.ones(len(first)) if weights is None else np.asarray(weights, float)
    gap = np.asarray(first, float) - np.asarray(second, float)
    return _difference(
        _ratio((gap * weights).sum(), weights.sum()),
        _resampled_means(gap, weights, resamples, seed),
        level,
    )


def mcnemar(first: Bool[np.ndarray, " examples"], second: Bool[np.ndarray, " others"]) -> McNemar:
    """McNemar's exact test (1947; binomial form): whether two classifiers err equally often on the
    same examples.

    Raises:
        ValueError: the two have different numbers of examples.
    """
    from scipy.stats import binomtest

    if len(first) != len(second):
        raise ValueError(
            f"McNemar's test needs the same examples for both models, got {len(first)} and "
            f"{len(second)}."
        )
    a, b = int((first & ~second).sum()), int((second & ~first).sum())
    return McNemar(a, b, float(binomtest(a, a + b).pvalue) if a + b else 1.0)


def over_seeds(scores: Sequence[float], *, level: float = 0.95) -> OverSeeds:
    """Mean, deviation and interval of the scores of runs that differ in their seed; with one run,
    no deviation (NaN).

    Raises:
        ValueError: there is no score.
    """
    from scipy.stats import t

    if not scores:
        raise ValueError("A mean over seeds needs at least one run, got none.")
    mean, count = float(np.mean(scores)), len(scores)
    if count == 1:
        return OverSeeds(mean, math.nan, math.nan, math.nan, 1)
    deviation = float(np.std(scores, ddof=1))
    half = float(t.ppf((1 + level) / 2, count - 1)) * deviation / math.sqrt(count)
    return OverSeeds(mean, deviation, mean - half, mean + half, count)


def _resampled_means(
    values: np.ndarray, weights: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    totals = values * weights
    return np.array(
        [
            _ratio(totals[rows].sum(), weights[rows].sum())
            for rows in draws(len(values), resamples, seed)
        ]
    )


def _difference(observed: float, resampled: np.ndarray, level: float) -> Difference:
    # A tolerance: resampled sums of equal differences differ from the observed one by rounding
    # alone.
    far = np.abs(resampled - observed) >= abs(observed) - 1e-12
    return Difference(
        observed, *_bounds(resampled, level), float((1 + far.sum()) / (1 + len(resampled)))
    )


def _bounds(values: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1, got {level}.")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ratio(total: float, weight: float) -> float:
    return float(total / weight) if weight else math.nan
