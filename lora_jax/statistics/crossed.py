"""Means over seeds and examples at once, where every seed was scored on the same examples."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from lora_jax.statistics.interval import Interval

_MOST_DRAWN = 4_000_000  # positions that are held at once
_LEAST_P = 1e-12


@dataclass(frozen=True)
class Crossed:
    """A mean over seeds and examples, its standard error over other seeds and other examples, and
    what seeds alone have in it.
    """

    value: float
    error: float
    seed_error: float
    seeds: int
    examples: int

    def interval(self, level: float = 0.95) -> Interval:
        """Where the mean over all seeds and examples lies.

        The quantile is the mean of Student's, of seeds and of examples, each weighted by its part
        of the variance (Cochran & Cox 1950, section 4.14): two or three seeds say little of their
        spread, a thousand examples much of theirs. It covers at least as often as it says.
        """
        half = self._quantile((1 - level) / 2) * self.error
        return Interval(self.value, self.value - half, self.value + half)

    @property
    def p(self) -> float:
        """Two-sided p of a mean of 0: `interval(1 - p)` just reaches it. Not below 1e-12."""
        return min(2 * self._tail(abs(self.value)), 1.0)

    def p_within(self, margin: float) -> float:
        """The p of a mean that is `margin` or more away from 0: see `PairedTest.p_within`."""
        return self._tail(margin - abs(self.value))

    def _quantile(self, tail: float) -> float:
        share = min((self.seed_error / self.error) ** 2, 1.0) if self.error else 1.0
        by_seeds, by_examples = stats.t.isf(tail, [self.seeds - 1, max(self.examples - 1, 1)])
        return float(share * by_seeds + (1 - share) * by_examples)

    def _tail(self, distance: float) -> float:
        """The probability of an estimate that is so far off, or farther, in this direction."""
        if distance <= 0:
            return 0.5 if distance == 0 else 1.0
        beyond = lambda log: self._quantile(math.exp(log)) * self.error - distance
        lowest, middle = math.log(_LEAST_P), math.log(0.5)
        return math.exp(optimize.brentq(beyond, lowest, middle)) if beyond(lowest) > 0 else _LEAST_P


def crossed_mean(
    scores: Float[np.ndarray, "seeds examples"],
    weights: Float[np.ndarray, " examples"] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Crossed:
    """The mean of scores, of every seed on every example, weighted by `weights` (a loss a token:
    the tokens of each example), and how far it would move with other seeds and other examples.

    Seeds and examples are drawn with replacement, independently of each other, and a score counts
    as often as its seed times its example (the pigeonhole bootstrap: Owen 2007, Annals of Applied
    Statistics 1(2), section 3, arXiv 0712.1111). It counts noise of single scores up to three
    times, so it errs to the wide side. Few seeds lie nearer to their own mean than to the true one:
    their distances from it are stretched by sqrt(n / (n - 1)) first.

    Raises:
        ValueError: there are fewer than two seeds, no example, or weights of another length.
    """
    scores = np.asarray(scores, np.float64)
    weights = np.ones(scores.shape[-1:]) if weights is None else np.asarray(weights, np.float64)
    if scores.ndim != 2 or scores.shape[0] < 2 or weights.shape != scores.shape[1:]:
        raise ValueError(
            f"A mean over seeds and examples needs scores of two or more seeds, and a weight for "
            f"each example, got shapes {scores.shape} and {weights.shape}."
        )
    seeds, examples = scores.shape
    if not weights.sum() > 0:
        raise ValueError("A mean over seeds and examples needs an example with a weight above 0.")

    means = scores @ weights / weights.sum()
    stretched = scores + ((seeds / (seeds - 1)) ** 0.5 - 1) * (means - means.mean())[:, None]
    columns = np.concatenate([stretched * weights, weights[None]])
    times, sums = _resampled(columns, resamples, seed)
    totals, weight = sums[:, :-1], sums[:, -1]
    drawn = (times * totals).sum(axis=1) / (seeds * weight)

    seed_error = float(means.std(ddof=1)) / math.sqrt(seeds)
    return Crossed(
        float(means.mean()), max(float(drawn.std()), seed_error), seed_error, seeds, examples
    )


def _resampled(
    columns: Float[np.ndarray, "columns examples"], resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(how often each resample draws each seed, the sums of the columns over the examples that it
    draws); the last column is no seed's.
    """
    seeds, examples = columns.shape[0] - 1, columns.shape[1]
    if resamples * examples <= _MOST_DRAWN:
        times, drawn = _draws(seeds, examples, resamples, seed)
        return times, drawn @ columns.T

    rng, times = _seeds_drawn(seeds, resamples, seed)
    at_once = max(1, _MOST_DRAWN // examples)
    found = []
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        found.append(_examples_drawn(rng, count, examples) @ columns.T)
    return times, np.concatenate(found)


@functools.lru_cache(maxsize=4)
def _draws(seeds: int, examples: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each resample draws each seed and each example: a report asks for the same ones for
    all that it compares.
    """
    rng, times = _seeds_drawn(seeds, resamples, seed)
    return times, _examples_drawn(rng, resamples, examples)


def _seeds_drawn(seeds: int, resamples: int, seed: int) -> tuple[np.random.Generator, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng, rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)


def _examples_drawn(rng: np.random.Generator, resamples: int, examples: int) -> np.ndarray:
    rows = rng.integers(0, examples, (resamples, examples))
    rows += examples * np.arange(resamples)[:, None]
    times = np.bincount(rows.ravel(), minlength=resamples * examples)
    return times.reshape(resamples, examples).astype(np.float64)
