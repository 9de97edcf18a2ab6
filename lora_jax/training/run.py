"""A run: a config that is trained in a folder, with its place in the data, its files and its share
of the clock.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.adapters.checks import check_start, flags_of_optimizer, unreached
from lora_jax.adapters.stacking import pad, trim
from lora_jax.adapters.surgery import trainable_parameters
from lora_jax.config import ADAPTERS, Config, canonical, config_hash
from lora_jax.core import hosts
from lora_jax.core.init import initializer_named
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray, bytes_of
from lora_jax.data import total_steps
from lora_jax.data.batches import EpochBatches
from lora_jax.io.adapter import save_adapter
from lora_jax.metrics.predictions import Predictions, save_predictions
from lora_jax.metrics.score import Score
from lora_jax.tasks.predictions import loss_and_accuracy, metric_scores, predictions_of
from lora_jax.tasks.task import Task
from lora_jax.training.allocator import peak_bytes
from lora_jax.training.card import card_of
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.mesh import check_same_start, on_mesh, place_on
from lora_jax.training.metrics import MetricsLog, NoLog
from lora_jax.training.optim import make_optimizer, shapes_waiting
from lora_jax.training.result import RunResult
from lora_jax.training.sinks import About
from lora_jax.training.slots import Evaluated
from lora_jax.training.starting import start_from
from lora_jax.training.step import TrainState, create_state


class Diverged(FloatingPointError):
    """The loss is no longer finite."""


@dataclass
class Clock:
    """What a run has used, in seconds and real tokens; of runs side by side, an equal share.

    seconds: in all. compiling: of these, until programs were compiled. training: of these, in
    training steps but for the first of each length in this process. tokens: of the same steps.
    """

    seconds: float = 0.0
    compiling: float = 0.0
    training: float = 0.0
    tokens: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Over the time in training steps; None before the first."""
        return round(self.tokens / self.training, 1) if self.training and self.tokens else None


@dataclass(eq=False)
class Run:
    """A config and the folder that it is trained in. `rungs` are the steps at which it is judged.

    `open` gives it a slot, its files, and its place in the data: `step` of `steps` optimiser steps
    are taken.
    """

    config: Config
    folder: Path
    rungs: tuple[int, ...] = ()
    slot: int = 0
    step: int = 0
    steps: int = 0
    clock: Clock = field(default_factory=Clock)
    peak_bytes: int | None = None  # of the processes that had it before
    best: tuple[int, float] | None = None  # step and merit of the best epoch's end so far

    def open(self, task: Task, slot: int) -> None:
        """Opens its files and its iterator over the training batches, at step 0.

        Raises:
            OSError: its folder cannot be written.
        """
        train = self.config.train
        self.task, self.slot = task, slot
        self.step, self.steps = 0, steps_of(self.config, task)
        self.batches = task.batches(
            "train", train.batch_size, seed=train.seed, accumulate=train.accumulate
        )
        self.iterator = iter(self.batches)
        self.checkpoints = self._checkpoints("checkpoints", keep=2)
        self._best = self._checkpoints("best", keep=1) if self._selects else None
        log = MetricsLog if hosts.is_leader() else NoLog
        self.log = log(self.folder, train.sinks, about(self.folder, self.config))

    def _checkpoints(self, name: str, keep: int) -> Checkpoints:
        run = config_hash(self.config)
        return Checkpoints(self.folder / name, base=self.task.base, run=run, keep=keep)

    @property
    def _selects(self) -> bool:
        return self.config.train.select == "best_epoch"

    def restore(self, first: TrainState, step: int) -> TrainState:
        """The state of the checkpoint at `step` (0: the first state itself), to go on from.

        Raises:
            DamagedCheckpoint: it cannot be read.
            ValueError: it is another run's, or the adapter's start is not that of the base.
        """
        state = first
        if self.step:  # A later checkpoint was taken up before, and is not gone on from.
            self.clock, self.peak_bytes, self.best = Clock(), None, None
        self.iterator = iter(self.batches)
        if step:
            state, position = self.checkpoints.restore(first, step)
            self._take_up(position.pop("figures", {}))  # older checkpoints have none
            self.iterator.set_state(position)
        elif (
            self.config.lora.init_from is None
            and not self.task.given
            and not initializer_named(self.config.lora.init).makes_up
        ):
            # What makes up for rounding starts nearer to the base before quantisation than the frozen one.
            check_start(hosts.whole(first.trainable))
        self.step = step
        self.lose_patience()
        self.log.resume(step, self.steps)
        return state

    def is_at(self, every: int | None) -> bool:
        """Whether its step is a multiple of `every`."""
        return every is not None and self.step % every == 0

    @property
    def is_evaluated(self) -> bool:
        """Whether its validation score is due at its step, before the last one."""
        return not self.is_over and (self.ends_epoch or self.is_at(self.config.train.eval_every))

    @property
    def ends_epoch(self) -> bool:
        """Whether it takes its best epoch, and one ends here, or the last one is cut off here."""
        is_end = self.is_over or self.is_at(self.batches.steps_per_epoch)
        return self._selects and is_end

    def lose_patience(self) -> None:
        """Makes this step the last one, if it ends as many epochs as there is patience for without
        a better score.
        """
        patience = self.config.train.patience
        if patience is None or self.best is None or not self.ends_epoch:
            return
        if self.step - self.best[0] >= patience * self.batches.steps_per_epoch:
            self.steps = self.step

    @property
    def is_over(self) -> bool:
        """Whether it has taken its last step."""
        return self.step >= self.steps

    @property
    def is_judged(self) -> bool:
        """Whether it stands at a rung."""
        return self.step in self.rungs and not self.is_over

    def next_batch(self) -> Any:
        """Its next batch."""
        return next(self.iterator)

    def count(self, batch: Any) -> None:
        """Counts a batch's real tokens for the speed of its steps."""
        self.clock.tokens += int(batch["mask"][batch["weight"] > 0].sum())

    def _take_up(self, figures: Mapping[str, Any]) -> None:
        self.peak_bytes = figures.get("peak_bytes")
        self.best = figures.get("best") and tuple(figures["best"])
        known = {one.name: figures[one.name] for one in fields(Clock) if one.name in figures}
        self.clock = Clock(**known)

    def at_peak(self, peak_bytes: int | None) -> int | None:
        """The most of its steps so far, of this process (`peak_bytes`) and of those before."""
        known = [peak for peak in (peak_bytes, self.peak_bytes) if peak is not None]
        return max(known, default=None)

    def save(self, state: TrainState, peak_bytes: int | None = None) -> None:
        """Writes a checkpoint at its step, with what it has used until then.

        Raises:
            FileNotFoundError: its folder is gone.
        """
        if not self.log.path.exists():
            # A new folder with this checkpoint alone would go on without the rows so far.
            raise FileNotFoundError(f"{self.folder} was removed while the run was trained.")
        figures = {**asdict(self.clock), "peak_bytes": self.at_peak(peak_bytes), "best": self.best}
        self.checkpoints.save(state, {**self.iterator.get_state(), "figures": figures})

    def compare(self, state: TrainState, evaluated: Evaluated) -> None:
        """Keeps the state at the end of an epoch, if it is the first or the best one so far.

        A run that goes on from before its best epoch comes to the same one again, bit for bit, and
        finds it kept.
        """
        score = self._scores("validation", evaluated)[self.task.primary.name]
        merit = score.value if score.higher_is_better else -score.value
        if math.isnan(merit):  # a correlation with what is constant
            merit = -math.inf
        if self.best is None or merit > self.best[1]:
            self.best = (self.step, merit)
            self._best.save(state, {})

    def selected(self, state: TrainState) -> TrainState:
        """The last state, with what the best epoch's end had trained."""
        step, _ = self.best
        return state.replace(trainable=self._best.restore(state, step)[0].trainable)

    def conclude(
        self, state: TrainState, evaluated: Mapping[str, Evaluated]
    ) -> dict[str, dict[str, Score]]:
        """Writes the adapter, and what it said of each test example; the scores of each split:
        those of its sums, and on the test split, if that is one of them, the task's other metrics.
        """
        state, task = hosts.whole(state), self.task
        check_reached(state)
        scores = {split: self._sums(found.means) for split, found in evaluated.items()}
        if "test" in scores and (size := task.text_bytes("test")):
            loss = scores["test"]["loss"]
            bits = loss.value * loss.count / math.log(2) / size
            scores["test"]["bits_per_byte"] = Score("bits_per_byte", bits, False, "bytes", size)
        if "test" in scores and task.by_example:
            said = self._predictions("test", evaluated["test"].rows)
            scores["test"] |= metric_scores(said, task.primary)
            if hosts.is_leader():
                save_predictions(self.folder / "predictions" / "test.jsonl", said)

        if not hosts.is_leader():
            return scores
        save_adapter(
            self.folder / "adapter",
            trim(state.trainable),
            base=task.base,
            model=self.config.model.name,
            label_names=task.label_names,
            card=card_of(self.config, task, scores),
        )
        return scores

    def _sums(self, means: Mapping[str, float]) -> dict[str, Score]:
        primary, count = self.task.primary, int(means["examples"])
        found = loss_and_accuracy(primary, means["loss"], means.get("accuracy"), count)
        return {one.name: one for one in found}

    def _scores(self, split: str, evaluated: Evaluated) -> dict[str, Score]:
        """Those of the sums, and the task's other metrics if it is scored by one of them."""
        scores = self._sums(evaluated.means)
        if self.task.primary.name not in scores:
            said = self._predictions(split, evaluated.rows)
            scores |= metric_scores(said, self.task.primary)
        return scores

    def _predictions(self, split: str, rows: Sequence[Mapping[str, Any]]) -> Predictions:
        """What was said of each example of a split of which every batch was scored."""
        batches = _in_order(self.config, self.task, split)
        members = map(self.task.examples_of, batches.plan(0))
        return predictions_of(self.task, split, zip(members, rows, strict=True))

    def result(self, scores: Mapping[str, Mapping[str, Score]], **measured: Any) -> RunResult:
        """What a run that is over leaves: its scores, what its clock says, and the fields of
        `RunResult` that were `measured` elsewhere.
        """
        return RunResult(
            scores=scores,
            primary=self.task.primary.name,
            examples={split: len(encoded) for split, encoded in self.task.splits.items()},
            steps=self.steps,
            selected_step=self.best[0] if self.best is not None else None,
            peak_rss_bytes=peak_bytes(),
            tokens_per_second=self.clock.tokens_per_second,
            seconds=round(self.clock.seconds, 3),
            compile_seconds=round(self.clock.compiling, 3),
            training_seconds=round(self.clock.training, 3),
            padding_fraction=round(self.batches.padding_fraction, 4),
            note=self.task.note,
            **measured,
        )

    def close(self) -> None:
        """Closes its files."""
        for checkpoints in filter(None, (self.checkpoints, self._best)):
            checkpoints.close()
        self.log.close()


def about(folder: Path, config: Config) -> About:
    """What sinks are told of the run in a folder."""
    tags = {"method": config.method, "model": config.model.name, "data": config.data.title}
    return About(folder.name, canonical(config), tags)


def steps_of(config: Config, task: Task) -> int:
    """Optimiser steps of the run."""
    if config.train.total_steps is not None:
        return config.train.total_steps
    size = config.train.batch_size
    return total_steps(task.batched(size), size, config.train.epochs)


def initial_state(
    config: Config,
    task: Task,
    steps: int,
    *,
    like: Mapping[str, Any] | None = None,
    frozen: Mapping[str, Any] | None = None,
) -> tuple[Mapping[str, Any], TrainState]:
    """The frozen weights and the state before the first step; everything random in them follows
    from the run's seed.

    Args:
        like: shapes to which what is trained is padded (`Task.widest`).
        frozen: the base of another run that stores it in the same way; it is returned as it is.
    """
    key, run_key = jax.random.split(jax.random.key(config.train.seed))
    place = place_on(config.mesh, lambda: task.shapes(config))
    frozen, trainable = task.trainable(config, key, frozen=frozen, place=place)
    if config.method in ADAPTERS and config.lora.init_from is not None:
        trainable = start_from(
            trainable, config.lora.init_from, base=task.base, is_head=task.is_head
        )
    if like is not None:
        trainable = pad(trainable, like)
    check_same_start(trainable)
    state = create_state(trainable, make_optimizer(config.optim, steps), run_key)
    return on_mesh(config.mesh, frozen, state)


def abstract_state(config: Config, task: Task) -> tuple[Any, Any]:
    """What `initial_state` gives, as jax.ShapeDtypeStructs: nothing is read, quantised or copied."""
    frozen, trainable = task.shapes(config)
    tx = make_optimizer(config.optim, steps_of(config, task))
    first = lambda trainable: create_state(trainable, tx, jax.random.key(0))
    frozen, state = on_mesh(config.mesh, frozen, jax.eval_shape(first, trainable))
    return frozen, state.replace(opt_state=shapes_waiting(config.optim, state.opt_state))


def evaluation_batches(config: Config, task: Task, split: str) -> Iterator[Any]:
    """The batches that a split's scores are computed on: all, or for a capped validation split so
    many, spread evenly over all lengths.
    """
    train = config.train
    batches = _in_order(config, task, split)
    count = len(batches)
    if split == "validation" and train.eval_examples is not None:
        count = min(count, -(-train.eval_examples // train.eval_batch_size))
    # Batches come longest first: the first of them alone would be a sample of long texts.
    places = np.linspace(0, len(batches) - 1, count)
    return (batches[index] for index in places.round().astype(int).tolist())


def _in_order(config: Config, task: Task, split: str) -> EpochBatches:
    return task.batches(split, config.train.eval_batch_size, shuffle=False, epochs=1)


def check_finite(step: int, metrics: Mapping[str, Any]) -> None:
    """Raises Diverged if a step's loss or gradient is not finite."""
    if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"]):
        raise Diverged(
            f"The loss at step {step} is {metrics['loss']} and its gradient's norm "
            f"{metrics['grad_norm']}: training diverged. Lower optim.learning_rate, or set "
            "optim.clip_norm; with compute_dtype bfloat16, try float32."
        )


def check_reached(state: TrainState) -> None:
    """Warns of trained arrays that no gradient ever reached: they cost memory, and what they were
    to learn was not learnt.
    """
    seen = flags_of_optimizer(state.trainable, state.opt_state)
    silent = [] if seen is None or int(state.step) < 2 else unreached(state.trainable, seen)
    if silent:
        named = ", ".join(silent[:5])
        warnings.warn(
            f"{len(silent)} trained arrays never had a gradient other than 0, such as {named}: "
            "they did not learn.",
            stacklevel=3,
        )


def sizes(frozen: Mapping[str, Any], trainable: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes measured from the stored arrays.

    trainable_parameters: entries that are trained. base_bytes: what is kept of the base (nothing
    under full fine-tuning: then all of it is trained). base_bits_per_weight: bits a weight of those
    that are quantised, 32 (or 16) if none is. padded_bytes: what padding to the widest run of a
    group adds to the adapter, while it is trained.
    """
    leaves = list(flatten(frozen).values())
    quantized = [leaf for leaf in leaves if isinstance(leaf, QuantizedArray)] or leaves
    weights = sum(leaf.size for leaf in quantized)
    bits = round(8 * bytes_of(quantized) / weights, 4) if weights else None
    trimmed = trim(trainable)
    own, padded = (
        bytes_of([getattr(x, name) for x in tree.values() for name in x.trained_fields()])
        for tree in (trimmed, trainable)
    )
    return {
        "trainable_parameters": trainable_parameters(trimmed),
        "base_bytes": bytes_of(frozen),
        "base_bits_per_weight": bits,
        "adapter_bytes": own,
        "padded_bytes": padded - own,
    }
