"""Curves over runs: the best learning rate with its interval, learning against forgetting, and
quality against bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_jax.statistics.interval import Interval


@dataclass(frozen=True)
class BestRate:
    """The learning rate of the smallest loss, from a parabola in log rate. `on_edge`: the grid ends
    there, so the best may lie beyond.
    """

    rate: Interval
    loss: float
    on_edge: bool


def best_rate(
    rates: Sequence[float], losses: Any, *, level: float = 0.95, samples: int = 500, seed: int = 0
) -> BestRate:
    """The best learning rate: the vertex of a parabola through the best rate of the grid and its
    neighbours, in log rate.

    The interval is of the vertex over resampled seeds; one seed gives no spread, and then it spans
    the two neighbours in the grid.

    Args:
        losses: (rates,) or (seeds, rates); what diverged is NaN or infinite, and is never the best.

    Raises:
        ValueError: fewer than three rates, rates that do not increase, or no finite loss.
    """
    rates = [float(rate) for rate in rates]
    table = np.atleast_2d(np.asarray(losses, np.float64))
    if (
        len(rates) < 3
        or table.shape[-1] != len(rates)
        or any(a >= b for a, b in zip(rates, rates[1:]))
    ):
        raise ValueError(
            f"best_rate needs 3 or more rising rates and a loss for each, got {rates} and losses "
            f"of shape {table.shape}."
        )

    table = np.where(np.isfinite(table), table, np.inf)
    mean = table.mean(0)
    if not np.isfinite(mean).any():
        raise ValueError("Every learning rate diverged in a seed: lower the whole grid.")

    logs = np.log(rates)
    vertex, loss, best = _vertex(logs, mean)
    on_edge = best in (0, len(rates) - 1)
    low, high = logs[max(best - 1, 0)], logs[min(best + 1, len(rates) - 1)]
    if len(table) > 1:
        dice = np.random.default_rng(seed)
        drawn = [table[dice.integers(len(table), size=len(table))].mean(0) for _ in range(samples)]
        found = [_vertex(logs, row)[0] for row in drawn if np.isfinite(row).any()]
        tail = 100 * (1 - level) / 2
        low, high = np.percentile(found, [tail, 100 - tail])
    return BestRate(Interval(math.exp(vertex), math.exp(low), math.exp(high)), loss, on_edge)


def rate_ratio(first: BestRate, second: BestRate) -> Interval:
    """first's best rate over second's, with the interval that the ends of both allow (wider than
    one of 95 %).
    """
    return Interval(
        first.rate.value / second.rate.value,
        first.rate.low / second.rate.high,
        first.rate.high / second.rate.low,
    )


@dataclass(frozen=True)
class Kept:
    """A point of a forgetting curve: loss on what was learnt, and how much the loss on the old
    domain rose.
    """

    name: str
    step: int
    new_loss: float
    old_rise: float


def forgetting_at(curve: Sequence[Kept], new_loss: float) -> float | None:
    """The rise of the old loss when the curve has come down to `new_loss`, by linear interpolation;
    None if it never does.

    Methods must be compared at equal learning: one that learns less forgets less trivially
    (Biderman et al. 2024, section 4.3).
    """
    for before, after in zip(curve, curve[1:]):
        if after.new_loss <= new_loss <= before.new_loss:
            span = before.new_loss - after.new_loss
            share = 0.0 if span == 0 else (before.new_loss - new_loss) / span
            return before.old_rise + share * (after.old_rise - before.old_rise)
    return None


def pareto(points: Iterable[Kept]) -> list[Kept]:
    """The points that no other beats in both losses, from the least forgetting to the most
    learning.
    """
    front: list[Kept] = []
    for point in sorted(points, key=lambda p: (p.old_rise, p.new_loss)):
        if not front or point.new_loss < front[-1].new_loss:
            front.append(point)
    return front


def envelope(
    curves: Mapping[Any, Sequence[tuple[float, float]]], budgets: Sequence[float]
) -> list[Any]:
    """For each budget of bits, the name of the curve with the smallest loss there; None where no
    curve reaches.

    Args:
        curves: points (total bits, loss) by name, such as by bits a weight: one point a model size.
            Between points the loss is interpolated linearly in log bits; outside its points a curve
            says nothing.

    Reference: The case for 4-bit precision, Dettmers & Zettlemoyer 2023, Figure 1 (arXiv
        2212.09720).
    """
    best: list[Any] = []
    for budget in budgets:
        found = {
            name: loss
            for name, points in curves.items()
            if (loss := _at(points, budget)) is not None
        }
        best.append(min(found, key=found.__getitem__) if found else None)
    return best


def _at(points: Sequence[tuple[float, float]], budget: float) -> float | None:
    bits, losses = zip(*sorted(points))
    if not bits[0] <= budget <= bits[-1]:
        return None
    return float(np.interp(math.log(budget), np.log(bits), losses))


def _vertex(logs: np.ndarray, losses: np.ndarray) -> tuple[float, float, int]:
    """(log rate, loss, index of the grid's best) of the parabola through the best and its
    neighbours; the best itself at an edge.
    """
    best = int(np.argmin(losses))
    if best in (0, len(logs) - 1) or not np.isfinite(losses[best - 1 : best + 2]).all():
        return float(logs[best]), float(losses[best]), best
    near = slice(best - 1, best + 2)
    a, b, c = np.polyfit(logs[near] - logs[best], losses[near], 2)
    if a <= 0:
        return float(logs[best]), float(losses[best]), best
    shift = float(np.clip(-b / (2 * a), logs[best - 1] - logs[best], logs[best + 1] - logs[best]))
    return float(logs[best] + shift), float(a * shift**2 + b * shift + c), best
