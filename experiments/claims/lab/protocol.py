"""The protocol that all claims share ("P"): every arm at its own best learning rate, tuned on seeds
that are not scored; five seeds over three pretrainings; the same examples; one aggregator.

A claim is a file in experiments/claims with a `CLAIM` and a `run(lab)` that returns a `Finding`.
What it needs it asks of the lab alone, so that the same test can be run on made-up outcomes in
which nothing is to be found (`lab.null`).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from lab import small_model
from lab.contrast import Arm
from lab.inside import Matrix, matrices
from lab.setting import Run, Setting, trace_of
from lab.small_model import SmallModel
from lora_jax.sweeps.grid import run_id
from lora_jax.sweeps.provenance import environment
from lora_jax.sweeps.store import RunStore, is_run, read_run
from lora_jax.tasks.opening import LastTask

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
        change.
        """
        found = [self.losses(run, domain, change) for run in arm.runs]
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


class Lab(Arms):
    """Trains and measures, and keeps what ran: a run of equal content, of this claim or another, is
    trained once.

    Args:
        root: folder of the runs.
        seeds: of every arm that is scored.
    """

    def __init__(
        self,
        root: Path | str = "runs/claims",
        *,
        seeds: Sequence[int] = SEEDS,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.store = RunStore(root)
        self.seeds = tuple(seeds)
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._task = LastTask()
        self._surroundings: dict[str, Any] | None = None
        self._used: dict[str, tuple[float, bool]] = {}

    def new_account(self) -> None:
        """Begins to count anew which runs a claim rests on."""
        self._used = {}

    def account(self) -> dict[str, float]:
        """Seconds that each run and each pretraining took which the claim rests on, whenever it was
        trained, by its name.
        """
        return {name: seconds for name, (seconds, _) in self._used.items()}

    def seconds_here(self) -> float:
        """Of these, what was trained since `new_account`."""
        return sum(seconds for seconds, here in self._used.values() if here)

    def run(self, setting: Setting, seed: int, rate: float, *, scored: bool = True) -> Run:
        """See `Bench.run`.

        Raises:
            RuntimeError: it failed for another reason than divergence.
        """
        self._pretrain(setting.base_of(seed))
        # Of a language model `answers` measures each example, from the adapter.
        scored = scored and isinstance(setting.base, str)
        config = setting.config(seed, rate)
        name = run_id(config) + ("-rewarded" if setting.rewarded else "")
        folder = self.store.folder(name)
        made = lambda result, error=None: Run(name, setting, seed, rate, folder, result, error)
        record = read_run(folder) if is_run(folder) else None
        if record is not None and record.status == "done":
            result = record.result
            if not scored or result.is_tested:
                self._used.setdefault(name, (result.seconds or 0.0, False))
                return made(result)
        diverged = record is not None and (record.error or "").startswith("Diverged")
        if diverged and record.status == "failed":
            return made(None, record.error)
        task_of = self._rewarded if setting.rewarded else self._task.of
        return self._train(config, made, name, folder, task_of, scored=scored)

    def answers(self, run: Run) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Bench.answers`."""
        from lora_jax.metrics.predictions import load_predictions

        if not isinstance(run.setting.base, str):
            return self.losses(run, "B")[0], None
        said = load_predictions(run.folder / "predictions" / "test.jsonl")
        units = said.column("units")
        return said.column("loss") / units, said.column("correct") / units

    def untuned(self, setting: Setting, seed: int) -> Losses:
        """See `Bench.untuned`; kept, as all arms on a base and its texts share it."""
        stored = {
            key: value
            for key, value in setting.changes
            if key.startswith("quant.") or key == "data.name"
        }
        stored |= {} if setting.method != "qlora" else {"method": "qlora"}
        plain = Setting(setting.base, tuple(sorted(stored.items())), setting.bases)
        return self.losses((plain, seed), "B", None)

    def losses(
        self, of: Run | tuple[Setting, int], domain: str, change: Change | None = None
    ) -> Losses:
        """See `Bench.losses`. Kept in a file, unless a change has no name to keep them under.

        Raises:
            ValueError: the run diverged.
        """
        if isinstance(of, Run):
            if of.result is None:
                raise ValueError(f"The run {of.name} diverged ({of.error}): it has no losses.")
            setting, seed, config, folder = of.setting, of.seed, of.config, of.folder
        else:
            setting, seed = of
            # Before training neither rate nor seed of the run counts, but the base's.
            self._pretrain(setting.base_of(seed))
            config = setting.config(seed % setting.bases)
            folder = self.store.root / "untuned" / run_id(config)
        name = "" if change is None else getattr(change, "name", None)
        path = folder / (f"losses_{domain}-{name}.npz" if name else f"losses_{domain}.npz")
        if name is not None and path.is_file():
            with np.load(path) as kept:
                return kept["losses"], kept["weights"]

        found = self._measure(of, config, folder, domain, change)
        if name is not None:
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(path, losses=found[0], weights=found[1])
        return found

    def updates(
        self, run: Run, paths: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    ) -> list[Matrix]:
        """See `Bench.updates`."""
        return list(matrices(run, self._task.of(run.config), paths))

    def trace(self, run: Run) -> list[tuple[int, float]]:
        """See `Bench.trace`."""
        return run.trace()

    def matrices_of(self, model: str) -> dict[str, np.ndarray]:
        """See `Bench.matrices_of`."""
        from lab.weights import minilm_matrices

        return minilm_matrices()

    def together(self, setting: Setting, pairs: Sequence[tuple[int, float]]) -> list[Trace]:
        """See `Bench.together`. Trained anew at every call, and not kept."""
        from lora_jax.training.loop import fit
        from lora_jax.training.run import Run as Training

        self._pretrain(setting.base_of(pairs[0][0]))
        configs = [setting.config(seed, rate) for seed, rate in pairs]
        with tempfile.TemporaryDirectory() as folder:
            runs = [Training(config, Path(folder) / str(n)) for n, config in enumerate(configs)]
            outcomes: list[Any] = []
            fit(
                runs,
                lambda run, outcome: outcomes.append(outcome),
                task_of=self._task.of,
                wide=configs[0],
                slots=len(runs),
                score_test=False,
                quiet=True,
            )
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
            return [trace_of(run.folder) for run in runs]

    def mixed(self, runs: Sequence[Run]) -> float:
        """See `Bench.mixed`."""
        import jax

        from lora_jax.adapters.apply import apply
        from lora_jax.adapters.many import apply_many, make_bank
        from lora_jax.tasks.language_loss import hidden_inputs
        from lora_jax.training.saved import load_run

        saved = [load_run(run.folder, tasks=self._task) for run in runs]
        task, frozen = saved[0].task, saved[0].frozen
        batches = task.batches("test", 4 * len(saved), shuffle=False, epochs=1)
        inputs = hidden_inputs(batches[0])
        ids = jax.numpy.arange(len(inputs[0])) % len(saved)
        bank = make_bank([one.trainable for one in saved])
        states = lambda found: np.asarray(jax.device_get(found[0]))
        together = states(apply_many(task.model, frozen, bank, ids, *inputs, method="hidden"))
        off = 0.0
        for n, one in enumerate(saved):
            alone = states(apply(task.model, frozen, one.trainable, *inputs, method="hidden"))
            off = max(off, float(np.abs(together - alone)[ids == n].max() / np.abs(alone).max()))
        return off

    def _pretrain(self, base: SmallModel | str) -> None:
        """Counts a pretraining, which is done where it has not been."""
        if isinstance(base, str) or base.name in self._used:
            return
        start = time.perf_counter()
        here = not small_model.is_pretrained(base)
        folder = small_model.pretrained(base)
        took = json.loads((folder / "pretraining.json").read_text()).get("seconds")
        self._used[base.name] = (took or time.perf_counter() - start, here)

    def _rewarded(self, config: Any) -> Any:
        from lab.reward import RewardedTask

        return RewardedTask.of(self._task.of(config))

    def _train(
        self,
        config: Any,
        made: Callable[..., Run],
        name: str,
        folder: Path,
        task_of: Callable[[Any], Any],
        *,
        scored: bool,
    ) -> Run:
        from lora_jax.training.loop import fit
        from lora_jax.training.run import Diverged
        from lora_jax.training.run import Run as Training

        start, outcomes = time.perf_counter(), []
        self.store.start(name, config, self._environment(), score_test=scored)
        try:
            fit(
                [Training(config, folder)],
                lambda run, outcome: outcomes.append(outcome),
                task_of=task_of,
                score_test=scored,
                quiet=True,
            )
            if not outcomes:
                from lora_jax.training.interrupted import Interrupted

                raise Interrupted(0)
            if isinstance(outcomes[0], Exception):
                raise outcomes[0]
        except Diverged as error:
            self.store.fail(name, error)
            self._say(f"  {name}: diverged")
            return made(None, f"{type(error).__name__}: {error}")
        except BaseException:
            self.store.release(name)
            raise
        (result,) = outcomes
        self.store.finish(name, result)
        took = time.perf_counter() - start
        self._used[name] = (took, True)
        loss = result.value("validation", "loss")
        rate = config.optim.learning_rate
        self._say(f"  {name}: rate {rate:.3g}, validation {loss:.4f}, {took:.0f} s")
        return made(result)

    def _measure(
        self, of: Any, config: Any, folder: Path, domain: str, change: Change | None
    ) -> Losses:
        import jax

        from lab.examples import example_losses
        from lora_jax.training.saved import load_run

        if isinstance(of, Run):
            saved = load_run(folder, tasks=self._task)
            task, frozen, trainable = saved.task, saved.frozen, saved.trainable
        else:
            task = self._task.of(config)
            frozen, trainable = task.trainable(config, jax.random.key(0))
        if change is not None:
            frozen, trainable = change(task, frozen, trainable)
        encoded = task.splits["test"] if domain == "B" else small_model.held_out()
        buckets = getattr(task, "buckets", ())
        return example_losses(task.model, encoded, frozen, trainable, buckets=buckets)

    def _environment(self) -> dict[str, Any]:
        if self._surroundings is None:
            self._surroundings = environment()
        return self._surroundings
