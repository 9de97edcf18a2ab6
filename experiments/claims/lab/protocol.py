"""The protocol that all claims share ("P"): every arm at its own best learning rate, tuned on seeds
that are not scored; five seeds over three pretrainings; the same examples; one aggregator.

A claim is a file in experiments/claims with a `CLAIM` and a `run(lab)` that returns a `Finding`.
What it needs it asks of the lab alone, so that the same test can be run on made-up outcomes in
which nothing is to be found (`lab.null`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from lab.contrast import Arm
from lab.inside import Matrix
from lab.setting import Run, Setting

SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = (101, 102)
FACTOR = 2  # from one learning rate to the next
STEPS_BEYOND = 2  # points of the grid on each side of the best one
MOST_GROWN = 8  # points that a grid may grow by
UNIT = 1e-3  # the grid of all arms: this times powers of the factor
GUESS = {"full": 1e-3, "bitfit": 8e-3, "head": 8e-3}  # where an arm's grid begins
LORA_GUESS = 8e-3
MARGIN = 0.1  # of the gain on the untuned model: the smallest difference that matters

# A change of a model's trees before its losses are measured: (task, frozen, trainable) to both.
Change = Callable[[Any, Any, Any], tuple[Any, Any]]
Losses = tuple[np.ndarray, np.ndarray]  # of each example: mean loss in nats, units
Trace = list[tuple[int, float]]  # step, training loss


@dataclass(frozen=True)
class Curve:
    """Validation losses (seeds, rates); infinite where a run diverged."""

    rates: tuple[float, ...]
    losses: Float[np.ndarray, "seeds rates"]

    @property
    def mean(self) -> dict[float, float]:
        """{rate: mean loss over seeds}."""
        return dict(zip(self.rates, map(float, self.losses.mean(0))))


class Bench(Protocol):
    """What a lab has to give: trained runs and losses. `Lab` measures them, `lab.null.NullLab`
    makes them up.
    """

    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]

    def run(self, setting: Setting, seed: int, rate: float, *, scored: bool = True) -> Run:
        """The run, trained if it has not been. One that diverged is a recorded outcome. Only a
        `scored` one may be asked for what it gives on the test split.
        """

    def answers(self, run: Run) -> tuple[np.ndarray, np.ndarray | None]:
        """The loss of a scored run on each test example, and the share of it that it got right
        (None of a language model).
        """

    def untuned(self, setting: Setting, seed: int) -> Losses:
        """Losses on the test split before the first step, on the base as the setting stores it."""

    def losses(self, of: Run | tuple[Setting, int], domain: str, change: Change | None) -> Losses:
        """Losses of a run, or of a setting before training, on 'B' (the test split) or 'A' (held
        out texts of what S was pretrained on), after a change of its weights.
        """

    def updates(self, run: Run, paths: tuple[str, ...]) -> list[Matrix]:
        """What a run did to each matrix of these names; see `lab.inside.matrices`."""

    def trace(self, run: Run) -> list[tuple[int, float]]:
        """(step, training loss) as it was logged."""

    def matrices_of(self, model: str) -> dict[str, np.ndarray]:
        """The pretrained linear layers of 'minilm' by path, (layers, in, out)."""

    def together(self, setting: Setting, pairs: Sequence[tuple[int, float]]) -> list[Trace]:
        """What `trace` gives of runs with these seeds and rates, on one base, that were trained
        side by side in one program.
        """

    def mixed(self, runs: Sequence[Run]) -> float:
        """How far the last hidden states of one batch, whose examples each have the adapter of one
        of the runs, are from those with each adapter alone: the largest difference over the largest
        state. The runs stand on one base.
        """


class Arms:
    """How arms are made of runs, whoever gives them."""

    seeds: tuple[int, ...] = SEEDS
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS

    def arm(
        self: Bench,
        name: str,
        setting: Setting,
        *,
        guess: float | None = None,
        seeds: Sequence[int] | None = None,
        by: Callable[[Run], float] | None = None,
    ) -> Arm:
        """The arm at its best learning rate: a grid of factor 2 around a guess, grown until two
        points stand on each side of the best mean over the tuning seeds; then the vertex of the
        parabola through the best and its neighbours.

        Args:
            by: what the rate is to make small, of a run that did not diverge; its validation loss
                by default.
        """
        guess = GUESS.get(setting.method, LORA_GUESS) if guess is None else guess
        start = round(np.log2(guess / UNIT))
        tried: dict[int, float] = {}

        def loss_at(point: int) -> float:
            runs = [self.run(setting, s, rate_at(point), scored=False) for s in self.tuning_seeds]
            if by is None or any(run.result is None for run in runs):
                return float(np.mean([run.validation_loss for run in runs]))
            return float(np.mean([by(run) for run in runs]))

        for point in (start, start - 1, start + 1):
            tried[point] = loss_at(point)
        for _ in range(MOST_GROWN):
            best = min(tried, key=tried.__getitem__)
            missing = [
                point
                for away in range(1, STEPS_BEYOND + 1)
                for point in (best - away, best + away)
                if point not in tried
            ]
            if not missing:
                break
            tried[missing[0]] = loss_at(missing[0])

        best = min(tried, key=tried.__getitem__)
        edge = best - 1 not in tried or best + 1 not in tried
        tuning = {rate_at(point): loss for point, loss in sorted(tried.items())}
        rate = vertex(tried, best)
        return self.fixed(name, setting, rate, seeds=seeds, tuning=tuning, on_edge=edge)

    def fixed(
        self: Bench,
        name: str,
        setting: Setting,
        rate: float,
        *,
        seeds: Sequence[int] | None = None,
        tuning: Mapping[float, float] | None = None,
        on_edge: bool = False,
    ) -> Arm:
        """The arm at a given learning rate."""
        seeds = tuple(self.seeds if seeds is None else seeds)
        runs = tuple(self.run(setting, seed, rate) for seed in seeds)
        before = [self.untuned(setting, seed) for seed in seeds]
        after = [
            (losses, None) if run.result is None else self.answers(run)
            for run, (losses, _) in zip(runs, before)
        ]
        right = [correct for _, correct in after]
        return Arm(
            name,
            setting,
            rate,
            seeds,
            np.stack([losses for losses, _ in after]),
            np.stack([losses for losses, _ in before]),
            before[0][1],
            None if any(correct is None for correct in right) else np.stack(right),
            tuning or {},
            on_edge,
            tuple(f"{name} at {rate:.3g}, seed {r.seed}" for r in runs if r.result is None),
            runs,
        )

    def curve(
        self: Bench, setting: Setting, rates: Sequence[float], *, seeds: Sequence[int] | None = None
    ) -> Curve:
        """Validation losses at every rate under every seed, for fits of the best rate."""
        seeds = tuple(self.seeds if seeds is None else seeds)
        table = [
            [self.run(setting, seed, rate, scored=False).validation_loss for rate in rates]
            for seed in seeds
        ]
        return Curve(tuple(rates), np.array(table))

    def stored(self: Bench, setting: Setting, domain: str = "A") -> tuple[np.ndarray, np.ndarray]:
        """Losses before training (pretrainings, examples) and weights, of the base as the setting
        stores it: what a format costs.
        """
        found = [self.losses((setting, seed), domain, None) for seed in range(setting.bases)]
        return np.stack([losses for losses, _ in found]), found[0][1]

    def in_formats(
        self: Bench, setting: Setting, changes: Sequence[Change], domain: str = "A"
    ) -> tuple[dict[Change | None, np.ndarray], np.ndarray]:
        """Losses before training (pretrainings, examples) by change of the base, None for the base
        as it is, and weights; one pretraining after the other, as opening one takes its time.
        """
        found: dict[Change | None, list[np.ndarray]] = {}
        for seed in range(setting.bases):
            for change in (None, *changes):
                losses, weights = self.losses((setting, seed), domain, change)
                found.setdefault(change, []).append(losses)
        return {change: np.stack(rows) for change, rows in found.items()}, weights

    def after(
        self: Bench, arm: Arm, domain: str, change: Change | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Losses of every run of the arm (seeds, examples) and weights, on a domain and after a
        change; of the model before training where a run diverged.
        """
        trained = [(run.setting, run.seed) if run.result is None else run for run in arm.runs]
        found = [self.losses(of, domain, change) for of in trained]
        return np.stack([losses for losses, _ in found]), found[0][1]


def rate_at(point: int) -> float:
    """The learning rate of a point of the grid that all arms share."""
    return UNIT * FACTOR**point


def vertex(tried: Mapping[int, float], best: int) -> float:
    """The rate, of three digits, of the lowest point of the parabola through the best point and its
    neighbours; of the best point itself where one of them is missing or diverged.
    """
    left, middle, right = (tried.get(best + away, np.inf) for away in (-1, 0, 1))
    curvature = left - 2 * middle + right
    if not np.isfinite(curvature) or curvature <= 0:
        return rate_at(best)
    return float(f"{rate_at(best) * FACTOR ** ((left - right) / (2 * curvature)):.3g}")
