"""Differences between arms over seeds and examples at once: one aggregator for every claim."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from lora_jax.statistics import Interval, crossed_mean, over_seeds
from lora_jax.statistics.crossed import Crossed

if TYPE_CHECKING:
    from lab.setting import Run, Setting


@dataclass(frozen=True)
class Arm:
    """A setting at its own best learning rate (or at a given one), under several seeds, scored on
    the same examples.

    losses, untuned: of every seed on every example (seeds, examples), nats a unit; `untuned` before
        training. A run that diverged counts with its untuned losses, since whoever trained it has
        nothing better. weights: units of the examples (tokens, or 1).
    correct: share of right units, where it is known.
    tuning: {rate: mean validation loss over the tuning seeds}; empty at a given rate.
    on_edge: the best rate has no worse one on one of its sides.
    """

    name: str
    setting: Setting
    rate: float
    seeds: tuple[int, ...]
    losses: Float[np.ndarray, "seeds examples"]
    untuned: Float[np.ndarray, "seeds examples"]
    weights: Float[np.ndarray, " examples"]
    correct: Float[np.ndarray, "seeds examples"] | None = None
    tuning: Mapping[float, float] = field(default_factory=dict)
    on_edge: bool = False
    diverged: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()

    def by_seed(self) -> list[float]:
        """Mean loss of each seed."""
        return [float(row) for row in self.losses @ self.weights / self.weights.sum()]

    def mean(self) -> float:
        """Mean loss over seeds and examples."""
        return float(np.mean(self.by_seed()))

    def gain(self) -> Contrast:
        """What training gained: untuned loss minus loss."""
        return contrast(untuned=self, terms=((-1.0, self),))

    def summary(self) -> dict[str, Any]:
        """What a result file says of the arm."""
        finite = lambda loss: loss if np.isfinite(loss) else None
        found = {
            "rate": self.rate,
            "loss": self.mean(),
            "by_seed": self.by_seed(),
            "gain": interval_of(self.gain().interval()),
            "trainable": self.runs[0].trainable_parameters if self.runs else None,
            "tuning": [[rate, finite(loss)] for rate, loss in sorted(self.tuning.items())],
            "on_edge": self.on_edge,
        }
        if self.correct is not None:
            found["accuracy"] = float((self.correct @ self.weights / self.weights.sum()).mean())
        return found


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of arms' losses, its value for each seed, and how far it would move with other
    seeds and other examples.
    """

    crossed: Crossed
    by_seed: tuple[float, ...]

    @property
    def value(self) -> float:
        """Mean over seeds and examples."""
        return self.crossed.value

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.by_seed)

    def interval(self, level: float = 0.95) -> Interval:
        """Over seeds and examples (`Crossed.interval`)."""
        return self.crossed.interval(level)

    @property
    def p(self) -> float:
        """Two-sided p of no difference."""
        return self.crossed.p

    def __str__(self) -> str:
        return shown(self.interval())


@dataclass(frozen=True)
class OverSeeds:
    """A figure that every seed has one of (a slope, an overlap): as a `Contrast`, by Student's t
    over seeds.
    """

    by_seed: tuple[float, ...]

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.by_seed))

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.by_seed)

    def interval(self, level: float = 0.95) -> Interval:
        """Student's t."""
        found = over_seeds(self.by_seed, level=level)
        return Interval(found.mean, found.low, found.high)

    def __str__(self) -> str:
        return shown(self.interval())


def contrast(
    terms: Sequence[tuple[float, Arm]], *, untuned: Arm | None = None, column: str = "losses"
) -> Contrast:
    """The sum of weight times loss over the terms, paired by seed and example; with `untuned`, plus
    the loss of that arm's model before training.

    Args:
        column: 'losses', or 'correct' for shares of right answers.

    Raises:
        ValueError: arms have fewer than two seeds in common, or other examples.
    """
    arms = [arm for _, arm in terms] + ([] if untuned is None else [untuned])
    seeds = [seed for seed in arms[0].seeds if all(seed in arm.seeds for arm in arms)]
    sizes = {len(arm.weights) for arm in arms}
    if len(seeds) < 2 or len(sizes) > 1:
        raise ValueError(
            "A contrast needs arms with two or more seeds in common and the same examples, got "
            f"{', '.join(f'{arm.name} (seeds {arm.seeds}, {len(arm.weights)} examples)' for arm in arms)}."
        )
    at = lambda arm, table: table[[arm.seeds.index(seed) for seed in seeds]]
    total = sum(weight * at(arm, getattr(arm, column)) for weight, arm in terms)
    if untuned is not None:
        total = total + at(untuned, untuned.untuned)
    weights = arms[0].weights
    each = total @ weights / weights.sum()
    return Contrast(crossed_mean(total, weights), tuple(float(value) for value in each))


def difference(first: Arm, second: Arm, column: str = "losses") -> Contrast:
    """Loss of the first minus loss of the second."""
    return contrast(((1.0, first), (-1.0, second)), column=column)


def of_losses(
    terms: Sequence[tuple[float, Float[np.ndarray, "seeds examples"]]],
    weights: Float[np.ndarray, " examples"],
) -> Contrast:
    """The sum of weight times losses over the terms, of tables whose rows are the same seeds (of
    training, or of pretraining).
    """
    total = sum(weight * np.asarray(table, np.float64) for weight, table in terms)
    each = total @ weights / weights.sum()
    return Contrast(crossed_mean(total, weights), tuple(float(value) for value in each))


def diverged_in(arms: Iterable[Arm]) -> tuple[str, ...]:
    """Which runs of the arms diverged."""
    return tuple(name for arm in arms for name in arm.diverged)


def forest_row(found: Contrast | OverSeeds, margin: float | None = None) -> dict[str, Any]:
    """What `lab.page.draw` draws of it in a forest: its interval, a dot for each seed, and what
    matters in this row.
    """
    row = {"interval": interval_of(found.interval()), "seeds": found.by_seed}
    return row if margin is None else row | {"margin": margin}


def interval_of(interval: Interval) -> list[float]:
    """An interval as a result file has it: value, low, high."""
    return [interval.value, interval.low, interval.high]


def shown(interval: Interval, digits: int = 3) -> str:
    """'0.123 [0.100, 0.150]'."""
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
