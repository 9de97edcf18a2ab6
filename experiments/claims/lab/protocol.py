"""The protocol that all claims share: arms at their own best learning rate, several seeds, paired
examples, a verdict of three.

A claim is a file in experiments/claims with a `CLAIM` and a `run(lab)` that returns a `Finding`.
Its tolerance is part of the `CLAIM`, so it is fixed before anything runs.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lab.examples import example_losses
from lab.verdicts import Verdict, paired_losses
from lora_jax.config import Config
from lora_jax.statistics.interval import Interval
from lora_jax.sweeps.files import read_lines
from lora_jax.sweeps.grid import run_id
from lora_jax.sweeps.provenance import environment
from lora_jax.sweeps.store import RunStore, is_run, read_run
from lora_jax.training.result import RunResult

FACTOR = math.sqrt(10)  # from one learning rate of a grid to the next
EXTENSIONS = 3  # how often a grid may grow where its best is at an end


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how it is tested here.

    kind: 'exact' (a test in CI as well), 'weights' (algebra on pretrained weights) or 'trained'.
    published: the figure or statement of the source. expected: what must hold here, in words, with
    its tolerance. version: raised when the test changes, so that older results are not mistaken for
    results of it.
    """

    id: str
    title: str
    source: str
    published: str
    expected: str
    kind: Literal["exact", "weights", "trained"]
    tolerance: Mapping[str, float] = field(default_factory=dict)
    version: int = 1


@dataclass(frozen=True)
class Finding:
    """What came out. `ours` is the answer in one line; `figures` are the numbers behind it, `plot`
    lines to draw (see `ledger`).

    note: why it is so where it was tested, and what differs from the source's setting. diverged:
        arms or runs that did.
    """

    verdict: Verdict
    ours: str
    figures: Mapping[str, Any]
    note: str = ""
    plot: Mapping[str, Any] | None = None
    seeds: tuple[int, ...] = ()
    diverged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reason:
    """The most likely reason why a claim does not hold here, as a hypothesis that one more
    measurement could have refuted.

    supported: whether the measurement came out as the hypothesis says, by a rule that the claim's
    file fixed before it ran. It changes no verdict.
    """

    supposed: str
    measured: str
    supported: bool
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """A paragraph of a note."""
        outcome = "supports" if self.supported else "refutes"
        return (
            f"\n\n*Reason tested:* {self.supposed}. *Measured:* {self.measured}. This {outcome} it."
        )

    def entry(self) -> dict[str, Any]:
        """What stands in the figures under 'reason'."""
        return {
            "supposed": self.supposed,
            "measured": self.measured,
            "supported": self.supported,
            **self.figures,
        }


@dataclass(frozen=True)
class Run:
    """One training run of an arm; `error` says how it diverged, if it did."""

    name: str
    config: Config
    folder: Path
    result: RunResult | None
    error: str | None = None

    @property
    def validation_loss(self) -> float:
        """Nats; infinite if the run diverged."""
        loss = math.inf if self.result is None else self.result.value("validation", "loss")
        return loss if math.isfinite(loss) else math.inf

    def trace(self, split: str = "train") -> list[tuple[int, float]]:
        """(step, loss) of a split as it was logged."""
        rows = read_lines(self.folder / "metrics.jsonl")[0]
        return [(row["step"], row["loss"]) for row in rows if row["split"] == split]

    def losses(self, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
        """(mean loss, weight) of every example of the split after training; weights are tokens, or
        1 for a classifier.

        Kept beside the run.

        Raises:
            ValueError: the run diverged.
        """
        if self.result is None:
            raise ValueError(f"The run {self.name} diverged ({self.error}): it has no losses.")
        path = self.folder / f"losses_{split}.npz"
        if not path.is_file():
            from lora_jax.training.saved import load_run

            saved = load_run(self.folder)
            task = saved.task
            losses, weights = example_losses(
                task.model,
                task.splits[split],
                saved.frozen,
                saved.trainable,
                buckets=getattr(task, "buckets", ()),
            )
            np.savez(path, losses=losses, weights=weights)
        with np.load(path) as stored:
            return stored["losses"], stored["weights"]


@dataclass(frozen=True)
class Arm:
    """A setting at its own best learning rate: one run a seed, and the grid that the rate was
    chosen from.
    """

    name: str
    rate: float
    runs: tuple[Run, ...]
    tuning: tuple[
        tuple[float, float], ...
    ]  # (rate, validation loss of the first seed), infinite where it diverged

    @property
    def diverged(self) -> tuple[str, ...]:
        """The rates and seeds at which training diverged."""
        rates = [
            f"{self.name} at rate {rate:.2g}"
            for rate, loss in self.tuning
            if not math.isfinite(loss)
        ]
        return tuple(
            rates
            + [
                f"{self.name} with seed {run.config.train.seed}"
                for run in self.runs
                if run.result is None
            ]
        )

    def losses(self, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
        """(losses (seeds, examples), weights (examples,)) of the runs that did not diverge."""
        found = [run.losses(split) for run in self.runs if run.result is not None]
        if not found:
            raise ValueError(f"Every seed of the arm {self.name!r} diverged.")
        return np.stack([losses for losses, _ in found]), found[0][1]

    def mean(self, split: str = "test") -> float:
        """Mean loss over examples and seeds, weighted as the examples are."""
        losses, weights = self.losses(split)
        return float((losses.mean(0) * weights).sum() / weights.sum())

    def by_seed(self, split: str = "test") -> list[float]:
        """Mean loss of each seed."""
        losses, weights = self.losses(split)
        return [float((row * weights).sum() / weights.sum()) for row in losses]

    def spread(self, split: str = "test") -> float:
        """Standard deviation over seeds."""
        each = self.by_seed(split)
        return statistics.stdev(each) if len(each) > 1 else 0.0

    def summary(self) -> dict[str, Any]:
        """What a result file says of the arm."""
        return {
            "rate": self.rate,
            "loss": self.mean(),
            "by_seed": self.by_seed(),
            "trainable": None
            if self.runs[0].result is None
            else self.runs[0].result.trainable_parameters,
            "tuning": [[rate, loss if math.isfinite(loss) else None] for rate, loss in self.tuning],
        }


def compare(first: Arm, second: Arm, split: str = "test") -> tuple[Interval, list[float]]:
    """(paired interval of loss(first) - loss(second) over examples, the difference of each
    seed).
    """
    (one, weights), (two, _) = first.losses(split), second.losses(split)
    return paired_losses(one, two, weights=weights), [
        a - b for a, b in zip(first.by_seed(split), second.by_seed(split))
    ]


class Lab:
    """Runs arms and keeps what ran: a run of equal content, of this claim or another, is trained
    once.

    Args:
        root: folder of the runs.
        seeds: of every arm; learning rates are chosen with the first one, on the validation split.
    """

    def __init__(
        self,
        root: Path | str = "runs/claims",
        *,
        seeds: Sequence[int] = (0, 1, 2),
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.store = RunStore(root)
        self.seeds = tuple(seeds)
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._surroundings: dict[str, Any] | None = None
        self._used: dict[str, tuple[float, bool]] = {}

    def new_account(self) -> None:
        """Begins to count anew which runs a claim rests on."""
        self._used = {}

    def account(self) -> dict[str, float]:
        """Seconds that each run took which the claim rests on, whenever it was trained, by its
        id.
        """
        return {name: seconds for name, (seconds, _) in self._used.items()}

    def seconds_here(self) -> float:
        """Of these, what was trained since `new_account`."""
        return sum(seconds for seconds, here in self._used.values() if here)

    def arm(
        self,
        name: str,
        config: Config,
        rates: Sequence[float],
        *,
        seeds: Sequence[int] | None = None,
    ) -> Arm:
        """The arm at its best learning rate of the grid, which grows where the best is at an end
        (up to three times).
        """
        grid = sorted(rates)
        losses = {rate: self._tried(config, rate) for rate in grid}
        for _ in range(EXTENSIONS):
            best = min(losses, key=losses.__getitem__)
            if best == min(losses) or not math.isfinite(losses[best]):
                new = _next(min(losses), -1)
            elif best == max(losses):
                new = _next(best, 1)
            else:
                break
            losses[new] = self._tried(config, new)
        best = min(losses, key=losses.__getitem__)
        return self.fixed(
            name, _with_rate(config, best), seeds=seeds, tuning=tuple(sorted(losses.items()))
        )

    def fixed(
        self,
        name: str,
        config: Config,
        *,
        seeds: Sequence[int] | None = None,
        tuning: tuple[tuple[float, float], ...] = (),
    ) -> Arm:
        """The arm at the learning rate of its configuration."""
        runs = tuple(
            self.run(_with_seed(config, seed)) for seed in (self.seeds if seeds is None else seeds)
        )
        return Arm(name, config.optim.learning_rate, runs, tuning)

    def run(self, config: Config) -> Run:
        """The run, trained if it is not in the store. One that diverged is a recorded outcome, and
        is not tried again.

        Raises:
            RuntimeError: it failed for another reason.
        """
        from lora_jax.training.loop import train
        from lora_jax.training.run import Diverged

        name = run_id(config)
        folder = self.store.folder(name)
        record = read_run(folder) if is_run(folder) else None
        if record is not None and record.status == "done":
            self._used.setdefault(name, (record.result.seconds or 0.0, False))
            return Run(name, config, folder, record.result)
        if (
            record is not None
            and record.status == "failed"
            and (record.error or "").startswith("Diverged")
        ):
            return Run(name, config, folder, None, record.error)
        start = time.perf_counter()
        self.store.start(name, config, self._environment())
        try:
            result = train(config, folder, quiet=True)
        except Diverged as error:
            self.store.fail(name, error)
            self._say(f"  {name}: diverged")
            return Run(name, config, folder, None, f"{type(error).__name__}: {error}")
        except BaseException:
            self.store.release(name)
            raise
        self.store.finish(name, result)
        self._used[name] = (time.perf_counter() - start, True)
        self._say(
            f"  {name}: rate {config.optim.learning_rate:.2g}, validation "
            f"{result.value('validation', 'loss'):.4f}, {time.perf_counter() - start:.0f} s"
        )
        return Run(name, config, folder, result)

    def _tried(self, config: Config, rate: float) -> float:
        return self.run(_with_seed(_with_rate(config, rate), self.seeds[0])).validation_loss

    def _environment(self) -> dict[str, Any]:
        if self._surroundings is None:
            self._surroundings = environment()
        return self._surroundings


def interval_of(interval: Interval) -> list[float]:
    """An interval as a result file has it: value, low, high."""
    return [interval.value, interval.low, interval.high]


def shown(interval: Interval, digits: int = 3) -> str:
    """'0.123 [0.100, 0.150]'."""
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def with_(config: Config, **changes: Any) -> Config:
    """The configuration with values changed by dotted key, as `with_(config, **{'lora.rank':
    4})`.
    """
    from lora_jax.config import from_config_dict, to_dict

    values = to_dict(config)
    for key, value in changes.items():
        group, _, leaf = key.rpartition(".")
        (values[group] if group else values)[leaf] = value
    return from_config_dict(json.loads(json.dumps(values)))


def _next(rate: float, step: int) -> float:
    """The neighbour of a rate in the grid, of three digits: a rate reached by growing is the same
    run as one written down.
    """
    return float(f"{10 ** (round(2 * math.log10(rate) + step) / 2):.3g}")


def _with_rate(config: Config, rate: float) -> Config:
    return replace(config, optim=replace(config.optim, learning_rate=rate))


def _with_seed(config: Config, seed: int) -> Config:
    return replace(config, train=replace(config.train, seed=seed))
