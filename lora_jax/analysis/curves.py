"""Curves over runs: learning against forgetting, and quality against bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


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
