"""Tests of paired measurements, and what is left of them when many are made at once.

The t-test, McNemar's and the quantiles are scipy's. Sign flips are not
scipy.stats.permutation_test: a report makes hundreds of these tests over the same few seeds, and
one matrix of signs serves them all (equal figures, by a test). scipy has no Holm correction.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy import optimize, stats

from lora_jax.statistics.interval import over_seeds

_MOST_EXACT = 16  # differences whose 2^n signs are all tried
_MOST_PAIRS = 10_000  # that are asked for


class McNemar(NamedTuple):
    """Examples that only the first, and only the second model gets right, and the exact two-sided
    p-value of no difference.
    """

    first_only: int
    second_only: int
    p: float


@dataclass(frozen=True)
class PairedTest:
    """`first - second`, its confidence limits, its standard error, and two-sided p-values.

    `p` is Student's paired t-test, which takes the differences for normal. `p_signs` takes them for
    symmetric only: the share of sign changes that give a mean as far from 0; with n pairs it cannot
    be less than 2^(1 - n). Both are NaN for a single pair.
    """

    difference: float
    low: float
    high: float
    p: float
    p_signs: float
    count: int
    error: float = math.nan

    def p_within(self, margin: float) -> float:
        """The p-value of the two settings differing by `margin` or more, either way: the larger of
        two one-sided t-tests (TOST: Schuirmann 1987; below 0.05, the 90% interval of the difference
        lies within the margin). NaN for a single pair.

        Differences without any spread are judged by their signs: n of them lie on one side of the
        margin by chance with 2^-n.
        """
        distance = margin - abs(self.difference)
        if self.count < 2 or math.isnan(self.error):
            return math.nan
        if not self.error:
            return 0.5**self.count if distance > 0 else 1.0
        return float(stats.t.sf(distance / self.error, self.count - 1))


def paired_test(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> PairedTest:
    """Whether two settings differ, from their scores under the same seeds (or on the same folds),
    in the same order.

    Raises:
        ValueError: the lengths differ, or there is no pair.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape or one.ndim != 1 or not one.size:
        raise ValueError(
            f"A paired test needs two lists of one length, got shapes {one.shape} and "
            f"{other.shape}."
        )
    differences = one - other
    mean = over_seeds(differences.tolist(), level=level)
    if mean.runs == 1:
        return PairedTest(mean.mean, mean.low, mean.high, math.nan, math.nan, 1)

    signs = sign_flip_p(differences)
    # Differences that are alike to rounding leave no spread to judge by; their signs still count.
    flat = mean.deviation <= 1e-12 * max(np.abs(one).max(), np.abs(other).max(), 1e-300)
    error = 0.0 if flat else mean.deviation / math.sqrt(mean.runs)
    p = signs if flat else float(2 * stats.t.sf(abs(mean.mean / error), mean.runs - 1))
    return PairedTest(mean.mean, mean.low, mean.high, p, signs, mean.runs, error)


def mcnemar(first: Bool[np.ndarray, " examples"], second: Bool[np.ndarray, " others"]) -> McNemar:
    """McNemar's exact test (1947; binomial form): whether two classifiers err equally often on the
    same examples.

    Raises:
        ValueError: the two have different numbers of examples.
    """
    if len(first) != len(second):
        raise ValueError(
            f"McNemar's test needs the same examples for both models, got {len(first)} and "
            f"{len(second)}."
        )
    a, b = int((first & ~second).sum()), int((second & ~first).sum())
    return McNemar(a, b, float(stats.binomtest(a, a + b).pvalue) if a + b else 1.0)


def sign_flip_p(differences: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of Fisher's randomisation test: both signs of a difference were as likely.

    It is exact for up to 16 differences, and an estimate from `draws` for more.
    """
    array = np.asarray(differences, np.float64)
    is_exact = array.size <= _MOST_EXACT
    signs = (
        np.array(list(itertools.product((1.0, -1.0), repeat=array.size)))
        if is_exact
        else _random_signs(array.size, draws, seed)
    )
    extreme = np.abs(signs @ array) >= abs(array.sum()) * (1 - 1e-9) - 1e-15
    # The observed signs are one of the draws: p is never 0.
    return float(extreme.mean() if is_exact else (extreme.sum() + 1) / (draws + 1))


@functools.lru_cache(maxsize=4)
def _random_signs(count: int, draws: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice((1.0, -1.0), (draws, count))


def holm(p_values: Sequence[float], family: int | None = None) -> np.ndarray:
    """p-values adjusted for many comparisons (Holm 1979): below 0.05 all together with 95%
    confidence, whatever depends on what.

    Args:
        p_values: any that are NaN stay NaN and do not count.
        family: how many comparisons could have been made, if more than are given: those that were
            picked after a look at the data belong to all that they were picked from.

    Raises:
        ValueError: `family` is less than the number of p-values.
    """
    values = np.asarray(p_values, np.float64)
    kept = np.flatnonzero(~np.isnan(values))
    total = kept.size if family is None else family
    if total < kept.size:
        raise ValueError(f"A family of {family} comparisons cannot hold {kept.size}.")
    adjusted = np.full(values.shape, np.nan)
    order = kept[np.argsort(values[kept], kind="stable")]
    steps = (total - np.arange(order.size)) * values[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def detectable_difference(
    spread: float, count: int, *, level: float = 0.95, power: float = 0.8
) -> float:
    """The difference of two means that a paired test of `count` pairs, whose differences have
    standard deviation `spread`, finds with `power`. Infinite for fewer than two pairs.
    """
    if count < 2:
        return math.inf
    missing = lambda distance: _power(distance, count, level) - power
    most = 1.0
    while missing(most) < 0:
        most *= 2
    return float(optimize.brentq(missing, 0.0, most)) * spread


def pairs_needed(
    difference: float, spread: float, *, level: float = 0.95, power: float = 0.8
) -> int | None:
    """How many pairs a paired test needs to find this difference of two means with `power`, where
    the differences have standard deviation `spread`; None if 10,000 are not enough.
    """
    if not spread:
        return 2 if difference else None
    enough = lambda count: _power(abs(difference) / spread, count, level) >= power
    if not enough(_MOST_PAIRS):
        return None
    few, many = 1, 2
    while not enough(many):
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def _power(distance: float, count: int, level: float) -> float:
    """How often a paired t-test finds a mean that is so many standard deviations from 0: Student's
    noncentral t (Cohen 1988, section 2.2), as the mean of normal tails over the deviations that may
    be estimated: scipy's has no digits left far out.
    """
    needed, shift = _needed(count - 1, level), distance * math.sqrt(count)
    return float(np.mean(stats.norm.sf(needed - shift) + stats.norm.cdf(-needed - shift)))


@functools.lru_cache(maxsize=256)
def _needed(freedom: int, level: float) -> np.ndarray:
    """How many true standard errors a mean must be from 0, for each estimate of the deviation."""
    shares = (np.arange(1000) + 0.5) / 1000
    quantile = stats.t.ppf((1 + level) / 2, freedom)
    return quantile * np.sqrt(stats.chi2.ppf(shares, freedom) / freedom)
