"""Bootstrap intervals of any score of a set of examples, and paired ones of a difference.

scipy.stats.bootstrap does the same, with other draws and without a weighted mean; every interval
that was recorded here came from these draws, so they stay. They follow from the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lora_jax.statistics.interval import Interval

# A score of the examples at these positions.
Statistic = Callable[[Int[np.ndarray, " drawn"]], float]


class Difference(NamedTuple):
    """The score of one model less that of another, its interval, and the two-sided p-value of no
    difference.
    """

    value: float
    low: float
    high: float
    p: float


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
    """Percentile interval of any score of a set of examples.

    The interval says how much the score would vary over test sets of this size; not over training
    runs.

    Reference: Efron & Tibshirani 1993, section 13.3.
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
    return bootstrap(
        _mean_of(scores, weights), len(scores), resamples=resamples, level=level, seed=seed
    )


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
    every = draws(examples, resamples, seed)
    resampled = np.array([first(rows) - second(rows) for rows in every])
    if math.isnan(observed):
        return Difference(math.nan, math.nan, math.nan, math.nan)
    # A tolerance: resampled sums of equal differences differ from the observed one by rounding. A
    # resample without a score counts as far: it says nothing for a difference.
    far = ~(np.abs(resampled - observed) < abs(observed) - 1e-12)
    p = float((1 + far.sum()) / (1 + len(resampled)))
    return Difference(observed, *_bounds(resampled, level), p)


def paired_means(
    first: Float[np.ndarray, "*seeds examples"],
    second: Float[np.ndarray, "*others examples_too"],
    weights: Float[np.ndarray, " examples"] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """As `paired_bootstrap`, of the difference of two weighted means. Scores of several seeds are
    averaged over them first: an example is drawn once for all seeds.

    Raises:
        ValueError: the models were not scored on equally many examples.
    """
    one, other = (np.atleast_2d(np.asarray(scores, float)).mean(0) for scores in (first, second))
    if len(one) != len(other):
        raise ValueError(
            f"A paired test needs the same examples for both models, got {len(one)} and "
            f"{len(other)}."
        )

    # The mean of the gaps: equal scores then differ by nothing, not by rounding.
    return paired_bootstrap(
        _mean_of(one - other, weights),
        lambda rows: 0.0,
        len(one),
        resamples=resamples,
        level=level,
        seed=seed,
    )


def _mean_of(scores: Any, weights: Any) -> Statistic:
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, float)
    totals = np.asarray(scores, float) * weights
    return lambda rows: _ratio(totals[rows].sum(), weights[rows].sum())


def _bounds(values: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1, got {level}.")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ratio(total: float, weight: float) -> float:
    return float(total / weight) if weight else math.nan
