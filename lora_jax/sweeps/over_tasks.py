"""Settings that ran on several data sets or models, compared over all of them: as rliable does
(`lora_jax.statistics.aggregate`).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_jax.statistics.aggregate import (
    improvement_interval,
    interquartile_mean_interval,
)
from lora_jax.statistics.interval import Interval
from lora_jax.sweeps.cells import UNLIKE, Cell, axes, facets, measure, shown
from lora_jax.sweeps.comparisons import adapters, choice


@dataclass(frozen=True)
class OverTasks:
    """A setting over all tasks (data sets or models).

    `scores` are of its runs, task by task. `rank` is its mean rank among the settings by the score
    that the best is chosen by, 1 the best. `middle` is the interquartile mean of its test scores,
    where these are shares of right answers and so of one unit; `improvement` the probability that a
    run of the setting with the best mean rank is better on the test set than one of this.
    """

    name: str
    scores: tuple[tuple[float, ...], ...]
    rank: float
    middle: Interval | None
    improvement: Interval | None


def over_tasks(cells: Sequence[Cell]) -> list[OverTasks]:
    """The adapters that every task has, the best mean rank first; nothing unless there are two of
    both. Intervals are over seeds, one at a time: tasks stay as they are.
    """
    cells = adapters(cells)
    tasks = list(facets(cells).values())
    arms = {name: arm for name, arm in _arms(cells).items() if len(arm) == len(tasks)}
    if len(tasks) < 2 or len(arms) < 2:
        return []

    said = measure(cells)
    ranks = _mean_ranks(tasks, arms)
    first, *_ = order = sorted(arms, key=ranks.__getitem__)
    scores = {name: tuple(tuple(cell.by_seed().values()) for cell in arms[name]) for name in arms}
    sign = 1 if said.higher_is_better else -1
    merits = {name: [[sign * x for x in task] for task in scores[name]] for name in arms}
    return [
        OverTasks(
            name,
            scores[name],
            ranks[name],
            interquartile_mean_interval(scores[name]) if said.share else None,
            None if name == first else improvement_interval(merits[first], merits[name]),
        )
        for name in order
    ]


def _arms(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of each setting, its data and model aside."""
    columns = {axis: column for axis, column in axes(cells).items() if axis not in UNLIKE}
    found: dict[str, list[Cell]] = defaultdict(list)
    for place, cell in enumerate(cells):
        words = (f"{axis} {shown(column[place])}" for axis, column in columns.items())
        found[", ".join(words)].append(cell)
    return found


def _mean_ranks(
    tasks: Sequence[Sequence[Cell]], arms: Mapping[str, Sequence[Cell]]
) -> dict[str, float]:
    """The mean rank of each setting over the tasks; equal ones share the mean of their places."""
    ranks: dict[str, list[float]] = defaultdict(list)
    for task in tasks:
        merit, own = choice(task).merit, set(map(id, task))
        here = {name: merit(cell) for name, arm in arms.items() for cell in arm if id(cell) in own}
        for name, value in here.items():
            better = sum(other > value for other in here.values())
            equal = sum(other == value for other in here.values())
            ranks[name].append(better + (equal + 1) / 2)
    return {name: statistics.fmean(places) for name, places in ranks.items()}
