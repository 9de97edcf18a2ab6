"""Intervals and paired tests for few, paired measurements, and what is left of them when many are
made at once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lora_jax.evaluation.statistics import over_seeds

_MOST_EXACT = 16  # differences whose 2^n signs are all tried


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence limits; the limits are NaN where one value says nothing about the
    spread.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class PairedTest:
    """`first - second`, its confidence limits, and two-sided p-values.

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


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent values, such as one score a seed.

    Raises:
        ValueError: there is no value.
    """
    array = np.asarray(values, np.float64)
    if not array.size:
        raise ValueError("A mean needs at least one value, got none.")
    spread = over_seeds(array.tolist(), level=level)
    return Interval(spread.mean, spread.low, spread.high, spread.runs)


def share_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson's interval of a share, such as an accuracy on `trials` examples (Wilson 1927): sound
    near 0 and 1 too.

    Raises:
        ValueError: not 0 <= successes <= trials, or no trial.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"A share needs 0 <= successes <= trials and a trial, got {successes} of {trials}."
        )
    low, high = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    return Interval(successes / trials, float(low), float(high), trials)


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
    interval = mean_interval(differences, level)
    if interval.count == 1:
        return PairedTest(interval.mean, interval.low, interval.high, float("nan"), float("nan"), 1)
    signs = sign_flip_p(differences)
    spread = differences.std(ddof=1)
    # Differences that are all alike to rounding leave no spread to judge by; their signs still
    # count.
    flat = spread <= 1e-12 * max(np.abs(one).max(), np.abs(other).max(), 1e-300)
    t = 0.0 if flat else interval.mean / (spread / np.sqrt(interval.count))
    p = signs if flat else float(2 * stats.t.sf(abs(t), interval.count - 1))
    return PairedTest(interval.mean, interval.low, interval.high, p, signs, interval.count)


def sign_flip_p(differences: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of Fisher's randomisation test: every sign of every difference was as likely.
    Exact up to 16, else by `draws`.
    """
    array = np.asarray(differences, np.float64)
    if array.size <= _MOST_EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=array.size)))
        extreme = np.abs(signs @ array) >= abs(array.sum()) * (1 - 1e-9) - 1e-15
        return float(extreme.mean())
    signs = _random_signs(array.size, draws, seed)
    extreme = np.abs(signs @ array) >= abs(array.sum()) * (1 - 1e-9) - 1e-15
    return float(
        (extreme.sum() + 1) / (draws + 1)
    )  # the observed signs are one of the draws: p is never 0


@functools.lru_cache(maxsize=4)  # a report tests hundreds of pairs over the same seeds
def _random_signs(count: int, draws: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice((1.0, -1.0), (draws, count))


def holm(p_values: Sequence[float], family: int | None = None) -> np.ndarray:
    """p-values adjusted for many comparisons (Holm 1979): below 0.05 all together with 95%
    confidence, whatever depends on what.

    Args:
        p_values: any that are NaN stay NaN and do not count. family: how many comparisons could
            have been made, if more than are given: those that were picked after a look at the data
            belong to all that they were picked from.

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
    standard deviation `spread`, finds with `power`.

    By the normal approximation with Student's quantiles; infinite for fewer than two pairs.
    """
    if count < 2:
        return float("inf")
    quantiles = stats.t.ppf((1 + level) / 2, count - 1) + stats.t.ppf(power, count - 1)
    return float(quantiles * spread / np.sqrt(count))
