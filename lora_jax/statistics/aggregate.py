"""Settings compared over several tasks: after "Deep Reinforcement Learning at the Edge of the
Statistical Precipice" (Agarwal et al. 2021, arXiv 2108.13264), which is the library rliable.

Scores are given task by task, a list of runs for each; runs differ in their seed. Intervals are of
the stratified bootstrap (section 4.1 there): runs are drawn anew within each task, tasks stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lora_jax.statistics.interval import Interval

Tasks = Sequence[Sequence[float]]  # the scores of the runs of each task


def interquartile_mean(tasks: Tasks) -> float:
    """The mean of the middle half of all runs of all tasks (IQM, section 4.3).

    A run that lies across a quartile counts in part, where scipy.stats.trim_mean would count all of
    it: of few runs none is passed over.
    """
    return float(_middle(np.concatenate([np.asarray(task, np.float64) for task in tasks])[None])[0])


def probability_of_improvement(first: Tasks, second: Tasks) -> float:
    """How likely a run of the first setting scores above one of the second, on the mean of the
    tasks; equal scores count half (section 4.3; Mann & Whitney 1947).

    Raises:
        ValueError: the settings have different numbers of tasks, or a task has no run.
    """
    return float(
        np.mean([_above(np.array([x]), np.array([y]))[0] for x, y in _paired(first, second)])
    )


def performance_profile(tasks: Tasks, levels: Sequence[float]) -> Float[np.ndarray, " levels"]:
    """The share of runs that score above each level, on the mean of the tasks: the run-score
    distribution (section 4.2; Dolan & More 2002).
    """
    above = [np.mean(np.asarray(task)[:, None] > np.asarray(levels), axis=0) for task in tasks]
    return np.mean(above, axis=0)


def interquartile_mean_interval(
    tasks: Tasks, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """`interquartile_mean` with its interval over seeds."""
    drawn = np.concatenate(_drawn(tasks, resamples, np.random.default_rng(seed)), axis=1)
    return _interval(interquartile_mean(tasks), _middle(drawn), level)


def improvement_interval(
    first: Tasks, second: Tasks, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """`probability_of_improvement` with its interval over seeds."""
    value, rng = probability_of_improvement(first, second), np.random.default_rng(seed)
    both = zip(_drawn(first, resamples, rng), _drawn(second, resamples, rng), strict=True)
    return _interval(value, np.mean([_above(x, y) for x, y in both], axis=0), level)


def _paired(first: Tasks, second: Tasks) -> list[tuple[Sequence[float], Sequence[float]]]:
    if len(first) != len(second) or not all(map(len, (*first, *second))) or not len(first):
        raise ValueError(
            f"Two settings are compared over the same tasks, with runs in each, got "
            f"{[len(task) for task in first]} and {[len(task) for task in second]} runs."
        )
    return list(zip(first, second, strict=True))


def _above(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The share of pairs of runs in which the first is higher, for each row of runs."""
    gaps = first[:, :, None] - second[:, None, :]
    return (np.sign(gaps) / 2 + 0.5).mean(axis=(1, 2))


def _middle(runs: np.ndarray) -> np.ndarray:
    """The mean of the middle half of each row, ends counted in part."""
    ordered, count = np.sort(runs, axis=1), runs.shape[1]
    starts = np.arange(count)
    inside = np.minimum(starts + 1, 0.75 * count) - np.maximum(starts, 0.25 * count)
    weights = np.maximum(inside, 0.0)
    return ordered @ weights / weights.sum()


def _drawn(tasks: Tasks, resamples: int, rng: np.random.Generator) -> list[np.ndarray]:
    arrays = [np.asarray(task, np.float64) for task in tasks]
    return [array[rng.integers(0, array.size, (resamples, array.size))] for array in arrays]


def _interval(value: float, drawn: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
