"""The best learning rate of a curve of losses, its interval, and how it compares and scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lora_jax.statistics.interval import Interval

# The prior that a curve bends alike on both sides of its minimum, beside the data's weight. Without
# it five rates leave nothing to judge the fit by; with 0.1 real asymmetry is taken for noise.
_ALIKE = 0.015
# Of the way from one rate to the next: how well a curve between them can be known at all.
_RESOLUTION = 1 / 10
_PLACES = 401  # where the minimum is looked for, over the rates
_FEWEST = 5  # rates from which the fit can be judged


@dataclass(frozen=True)
class BestRate:
    """The learning rate of the smallest loss, with its interval of `level`, and that loss.

    An end of the interval is 0 or infinite where the curve does not tell it. `on_edge`: the grid
    ends there, so the best may lie beyond.
    """

    rate: Interval
    loss: float
    on_edge: bool
    level: float


def best_rate(rates: Sequence[float], losses: Any, *, level: float = 0.95) -> BestRate:
    """The best learning rate by a fit of the whole curve in log rate, with an interval over other
    seeds and the error of the fit.

    The curve is a parabola on each side of its minimum, which need not bend alike (divergence is
    steeper than slow learning). The weight of a rate whose loss lies x above the smallest is
    1 / (1 + (x / h)^2.8), h being the third smallest such rise of the grid: what nearly diverged
    does not count.

    A rate is in the interval if the slope of the curve there could be 0. The slope's error is that
    over seeds (a fit for each, Student's t) or that by the residuals of the mean curve, whichever
    is larger: those residuals have the seeds' noise in them, so both do not add. A tenth of
    the way from one rate to the next is added, as a square: a curve is not known better between
    them. With one seed, or
    fewer than 5 rates that do not diverge, one of the two is unknown, and the interval spans at
    least the two neighbours of the grid's best.

    Args:
        rates: rising; a factor of 2 apart is fine enough.
        losses: (rates,) or (seeds, rates). NaN or infinite is a run that diverged: its rate is never
            the best, and bounds the interval.

    Raises:
        ValueError: fewer than three rates, rates that do not increase, no rate finite in every
            seed, or `level` not between 0 and 1.
    """
    rates = [float(rate) for rate in rates]
    table = np.atleast_2d(np.asarray(losses, np.float64))
    _check(rates, table, level)
    finite = np.isfinite(table).all(0)
    if not finite.any():
        raise ValueError("Every learning rate diverged in a seed: lower the whole grid.")

    logs = np.log(rates)
    best = int(np.argmin(np.where(finite, np.where(finite, table, 0).mean(0), np.inf)))
    diverged = next((logs[n] for n in range(best, len(rates)) if not finite[n]), math.inf)
    around = (logs[max(best - 1, 0)], logs[min(best + 1, len(rates) - 1)])
    if finite.sum() < 3:
        value, low, high, loss = logs[best], *around, float(table[:, best].mean())
    else:
        value, low, high, loss = _fitted(logs[finite], table[:, finite], level)
        nearest = _RESOLUTION * (logs[-1] - logs[0]) / (len(logs) - 1)
        low = value - math.hypot(value - low, nearest)
        high = min(value + math.hypot(high - value, nearest), diverged)
        if len(table) == 1 or finite.sum() < _FEWEST:
            low, high = min(low, around[0]), max(high, around[1])

    on_edge = best in (0, len(rates) - 1) or value in (logs[0], logs[-1])
    rate = Interval(math.exp(value), math.exp(low), math.exp(high))
    return BestRate(rate, loss, on_edge, level)


def rate_ratio(first: BestRate, second: BestRate) -> Interval:
    """first's best rate over second's, with an interval of the level of both.

    Distances from the two values to their limits add as squares in log rate (MOVER: Zou & Donner
    2008, Statistics in Medicine 27), as errors of independent runs do; where both fits share seeds,
    that is wide rather than narrow.

    Raises:
        ValueError: the intervals have different levels.
    """
    _one_level([first, second])
    return _exp(_combined(np.array([1.0, -1.0]), [first, second], 1.0))


class Slope(NamedTuple):
    """How a best rate scales: rate ~ x ** value. `scatter`: how far the fits are from one line,
    beside what their intervals allow; above 1, the interval is wider by it.
    """

    value: float
    low: float
    high: float
    scatter: float


def slope_on_log(xs: Sequence[float], fits: Sequence[BestRate]) -> Slope:
    """The slope of log best rate on log x (rank, width, batch), with an interval of the level of the
    fits: 0 where the best rate does not move.

    Least squares with equal weights. The fits' errors add as in `rate_ratio`; if the points
    scatter more than those explain, the interval is widened by Birge's ratio, sqrt(chi2 / (n - 2)).

    Raises:
        ValueError: fewer than 3 fits, xs that are not as many, positive and different, or different
            levels.
    """
    xs = np.asarray(xs, np.float64)
    if len(fits) < 3 or xs.shape != (len(fits),) or (xs <= 0).any() or len(set(xs)) < len(xs):
        raise ValueError(
            f"slope_on_log needs 3 or more fits and for each a positive x of its own, got "
            f"{len(fits)} fits and x = {xs.tolist()}."
        )
    level = _one_level(fits)

    logs = np.log(xs) - np.log(xs).mean()
    parts = logs / (logs**2).sum()
    values = np.log([fit.rate.value for fit in fits])
    residuals = values - values.mean() - parts @ values * logs
    scatter = _scatter(residuals, fits, level)
    return Slope(*_combined(parts, fits, max(scatter, 1.0)), scatter)


def _check(rates: list[float], table: np.ndarray, level: float) -> None:
    rising = all(0 < a < b for a, b in zip(rates, rates[1:]))
    if len(rates) < 3 or table.ndim != 2 or table.shape[-1] != len(rates) or not rising:
        raise ValueError(
            f"best_rate needs 3 or more rising rates and a loss for each, got {rates} and losses "
            f"of shape {table.shape}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1, got {level}.")


def _fitted(
    logs: Float[np.ndarray, " rates"], table: Float[np.ndarray, "seeds rates"], level: float
) -> tuple[float, float, float, float]:
    """(log of the best rate, its limits, the loss there); limits are infinite where the slope could
    be 0 up to the end of the rates.
    """
    from scipy.stats import t

    mean = table.mean(0)
    places = np.linspace(logs[0], logs[-1], _PLACES)
    weights = _weights(mean)
    design, solve = _sides(places[:, None] - logs, weights)
    coefficients = solve @ mean
    slope, by_rate = coefficients[:, 1], solve[:, 1]
    residuals = mean - np.einsum("vrp,vp->vr", design, coefficients)
    left_over = (weights * residuals**2).sum(-1)

    rises = np.flatnonzero((slope[:-1] < 0) & (slope[1:] >= 0))
    if len(rises):
        at = int(rises[np.argmin(left_over[rises])])
        share = slope[at] / (slope[at] - slope[at + 1])
        value = places[at] + share * (places[at + 1] - places[at])
        # A parabola falls by half its slope times the way to its minimum.
        loss = coefficients[at, 0] + slope[at] * (value - places[at]) / 2
    else:
        value, loss = logs[np.argmin(mean)], mean.min()
        at = int(np.argmin(np.abs(places - value)))

    # Four coefficients, the fourth half known: see _ALIKE.
    freedom = max(len(logs) - 3.5, 1.0)
    of_fit = np.sqrt(left_over[at] / freedom * (by_rate**2 / weights).sum(-1))
    half = t.isf((1 - level) / 2, freedom) * of_fit
    if len(table) > 1:
        of_seeds = (table @ by_rate.T).std(0, ddof=1) / math.sqrt(len(table))
        seeds_half = t.isf((1 - level) / 2, len(table) - 1) * of_seeds
        half = np.where(of_seeds >= of_fit, seeds_half, half)
    rounding = 1e-12 * np.abs(mean).max()  # equal losses have no slope
    low, high = _reach(np.abs(slope) <= half + rounding, at, places)
    return float(value), min(low, value), max(high, value), float(loss)


def _weights(mean: np.ndarray) -> np.ndarray:
    rise = mean - mean.min()
    near = np.sort(rise)[2]
    return 1 / (1 + (rise / near) ** 2.8) if near > 0 else np.where(rise > 0, 1e-6, 1.0)


def _sides(
    before: Float[np.ndarray, "places rates"], weights: Float[np.ndarray, " rates"]
) -> tuple[np.ndarray, np.ndarray]:
    """(design, what gives the coefficients of losses) of a curve with its bend at each place: its
    loss and slope there, its curvature, and by how much that differs between the sides.
    """
    x = -before
    design = np.stack([np.ones_like(x), x, x * x, np.sign(x) * x * x], -1)
    weighted = np.swapaxes(design, -1, -2) * weights
    normal = weighted @ design
    normal[:, 3, 3] += _ALIKE * normal[:, 2, 2]
    return design, np.linalg.solve(normal, weighted)


def _reach(could_be: np.ndarray, at: int, places: np.ndarray) -> tuple[float, float]:
    """How far on both sides of `at` it goes on without a gap; infinite at the ends."""
    no = np.flatnonzero(~could_be)
    below, above = no[no < at], no[no > at]
    low = float(places[below[-1]]) if len(below) else -math.inf
    return low, float(places[above[0]]) if len(above) else math.inf


def _one_level(fits: Sequence[BestRate]) -> float:
    levels = {fit.level for fit in fits}
    if len(levels) > 1:
        raise ValueError(f"Intervals of one level are needed, got {sorted(levels)}.")
    return levels.pop()


def _combined(parts: np.ndarray, fits: Sequence[BestRate], widen: float) -> Interval:
    """The sum of parts of log rates; each limit from the limits that move it that way."""
    with np.errstate(divide="ignore"):
        value, low, high = np.log([fit.rate for fit in fits]).T
    down, up = value - low, high - value
    total = float(parts @ value)
    below = widen * math.hypot(*(parts * np.where(parts > 0, down, up))[parts != 0])
    above = widen * math.hypot(*(parts * np.where(parts > 0, up, down))[parts != 0])
    return Interval(total, total - below, total + above)


def _exp(of: Interval) -> Interval:
    return Interval(*(math.exp(value) for value in of))


def _scatter(residuals: np.ndarray, fits: Sequence[BestRate], level: float) -> float:
    from scipy.stats import norm

    with np.errstate(divide="ignore"):
        value, low, high = np.log([fit.rate for fit in fits]).T
    error = np.where(residuals > 0, value - low, high - value) / norm.isf((1 - level) / 2)
    # A fit without an error must lie on the line; one without a limit may lie anywhere.
    far = np.where(np.abs(residuals) > 1e-9, residuals, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        chi2 = np.nansum(np.where(far == 0, 0, (far / error) ** 2))
    return float(math.sqrt(chi2 / (len(residuals) - 2)))
