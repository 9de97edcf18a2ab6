"""Many runs as one program: each its own adapter, optimiser, data and files, all on one frozen
base.

Every array of the training state has a leading adapter axis of a fixed number of slots. A slot is
filled by a run, and by the next one when that is finished, has diverged or was stopped: nothing is
compiled again. A run in a slot writes what it writes alone.
"""

from __future__ import annotations

import functools
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.adapters.checks import check_start
from lora_jax.adapters.stacking import pad, trim
from lora_jax.config import Config, config_hash
from lora_jax.core.init import initializer_named
from lora_jax.core.quantize import bytes_of
from lora_jax.io.adapter import save_adapter
from lora_jax.metrics.score import Score
from lora_jax.tasks.opening import open_task
from lora_jax.tasks.predictions import metric_scores
from lora_jax.tasks.task import Task
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.compile import lanes_for, wait_on_cpu
from lora_jax.training.evaluation import evaluate
from lora_jax.training.interrupted import Interrupted, stop_signals
from lora_jax.training.loop import (
    Programs,
    check_finite,
    check_reached,
    evaluation_batches,
    loss_and_accuracy,
    programs_for,
    sizes,
    steps_of,
    structure_of_steps,
)
from lora_jax.training.metrics import MetricsLog
from lora_jax.training.optim import make_optimizer
from lora_jax.training.progress import TrainingBar
from lora_jax.training.result import RunResult
from lora_jax.training.sharing import differences, stack_key
from lora_jax.training.step import TrainState, create_state


@dataclass(frozen=True)
class Job:
    """A run and the folder that it writes to. `rungs` are the steps at which it is judged."""

    config: Config
    folder: Path
    rungs: tuple[int, ...] = ()


class Stopped(Exception):
    """A run was stopped by the judge of a sweep, with a checkpoint at `step`."""

    def __init__(self, step: int, score: dict[str, float]) -> None:
        super().__init__(
            f"Stopped at step {step} with validation loss {score['loss']:.4f}: others were better. "
            "A checkpoint was written."
        )
        self.step, self.score = step, score


Finished = Callable[[Job, "RunResult | Exception"], None]
Judge = Callable[[Job, int, dict[str, float]], bool]


def train_stacked(
    jobs: Iterator[Job] | Sequence[Job],
    finished: Finished,
    *,
    wide: Config,
    slots: int,
    task: Task | None = None,
    judge: Judge | None = None,
    quiet: bool = False,
    title: str = "training",
) -> None:
    """Trains runs side by side, `slots` at a time, and gives each one's result, or its error, to
    `finished` as soon as it is known.

    Every run gets the losses, factors, files and result that `lora_jax.train` gives it alone, up to
    the order of sums: figures of memory and time are its share. A run that diverges or cannot be
    written fails by itself and its slot goes to the next. Each goes on from its newest checkpoint;
    runs that were interrupted together go on together, bit for bit.

    Args:
        jobs: taken one by one as slots become free.
        task: the runs', which its caller holds; without one it is opened here.
        wide: a run into whose rank and targets all fit (`lora_jax.training.sharing.widest`).
        judge: asked at each run's rungs with the scores on the validation split; False stops the
            run.

    Raises:
        Interrupted: SIGTERM or SIGINT came; all runs have checkpoints.
        ValueError: a run cannot stand beside the others; the settings in which they differ are
            named.
    """
    with stop_signals() as stopped:
        task = open_task(wide) if task is None else task
        stack = _Stack(task, wide, slots, finished, judge, iter(jobs))
        try:
            stack.fill()
            with TrainingBar(
                title, max([member.steps for member in stack.members], default=0), quiet=quiet
            ) as bar:
                while stack.members:
                    stack.advance(bar, stopped)
                    stack.fill()
        finally:
            stack.close()


@dataclass(eq=False)
class _Member:
    """A run in a slot."""

    job: Job
    slot: int
    steps: int
    step: int
    position: Any  # the iterator over its batches
    checkpoints: Checkpoints
    log: MetricsLog
    padding: float
    first: TrainState | None  # before it is put into the stack
    sizes: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    training: float = 0.0  # seconds, its share
    seconds: float = 0.0
    compiling: float = 0.0

    @property
    def order(self) -> tuple[int, int]:
        """What fixes the next batch."""
        return self.job.config.train.seed, self.step

    def close(self) -> None:
        """Closes its files."""
        self.checkpoints.close()
        self.log.close()


class _Stack:
    def __init__(
        self,
        task: Task,
        wide: Config,
        slots: int,
        finished: Finished,
        judge: Judge | None,
        jobs: Iterator[Job],
    ) -> None:
        self.task, self.wide = task, wide
        self.like = task.widest(wide)
        self.slots = slots
        self.first: Config | None = None
        self.finished, self.judge, self.jobs = finished, judge, jobs
        self.members: list[_Member] = []
        self.frozen: Any = None
        self.state: TrainState | None = None
        self.pending: list[tuple[list[tuple[_Member, int]], Any]] = []
        structure = structure_of_steps(wide, steps_of(wide, self.task))
        self.programs: Programs = programs_for(
            task.per_example, *structure, slots, lanes_for(slots)
        )
        self.clock = time.perf_counter()
        self.compiled = self._compile_seconds()

    # --- Runs come and go.

    def fill(self) -> None:
        """Puts the next runs into the free slots."""
        new = []
        while len(self.members) + len(new) < self.slots:
            job = next(self.jobs, None)
            if job is None:
                break
            taken = {member.slot for member in [*self.members, *new]}
            slot = next(slot for slot in range(self.slots) if slot not in taken)
            try:
                new.append(self._open(job, slot))
            except Exception as error:
                self.finished(job, error)
        if not new:
            return
        try:
            self._restore(new)
            new = [member for member in new if member.first is not None]
            if new:
                self._place(new)
        except BaseException:
            for member in new:
                member.close()
            raise
        if not new:
            return self.fill()
        for member in new:
            member.first = None
        self.members += new
        self._share(new, "seconds")
        # A run that was killed after its last step was not scored, and one that was killed at its
        # rung not judged there.
        self._finish([member for member in new if member.step >= member.steps])
        self._judge(self._judged(new))
        if len(self.members) < self.slots:
            self.fill()

    def _place(self, new: Sequence[_Member]) -> None:
        if self.state is None:
            own = {member.slot: member.first for member in new}
            # A slot without a run does what the first one does, and nobody looks.
            self.state = _stack([own.get(slot, new[0].first) for slot in range(self.slots)])
        else:
            for member in new:
                self.state = _put(self.state, member.slot, member.first)

    def _open(self, job: Job, slot: int) -> _Member:
        self.first = self.first or job.config
        if stack_key(job.config) != stack_key(self.first):
            raise ValueError(
                f"{job.folder.name} cannot be trained beside the others: "
                f"{'; '.join(differences(job.config, self.first))}."
            )
        config, train = job.config, job.config.train
        steps = steps_of(config, self.task)
        state = self._first_state(config, steps)
        batches = self.task.batches(
            "train", train.batch_size, seed=train.seed, accumulate=train.accumulate
        )
        checkpoints = Checkpoints(
            job.folder / "checkpoints", base=self.task.base, run=config_hash(config)
        )
        padding = round(batches.padding_fraction, 4)
        return _Member(
            job, slot, steps, 0, iter(batches), checkpoints, MetricsLog(job.folder), padding, state
        )

    def _first_state(self, config: Config, steps: int) -> TrainState:
        key, run_key = jax.random.split(jax.random.key(config.train.seed))
        self.frozen, trainable = self.task.trainable(config, key, frozen=self.frozen)
        return create_state(pad(trainable, self.like), make_optimizer(config.optim, steps), run_key)

    def _restore(self, new: Sequence[_Member]) -> None:
        """The newest checkpoints; of runs that were interrupted in the midst of writing theirs, the
        newest that all have.
        """
        there = {member: {0, *member.checkpoints.steps()} for member in new}
        newest = {member: max(steps) for member, steps in there.items()}
        common = max(set.intersection(*there.values()))
        near = max(newest.values()) - common <= self.wide.train.checkpoint_every
        for member in new:
            step = common if near else newest[member]
            try:
                if step:
                    member.first, position = member.checkpoints.restore(member.first, step)
                    member.position.set_state(position)
                    member.step = step
                elif initializer_named(member.job.config.lora.init).reads != "format":
                    check_start(member.first.trainable)
                member.log.resume(step, member.steps)
            except Exception as error:
                member.first = None
                member.close()
                self.finished(member.job, error)

    def _drop(self, member: _Member, outcome: RunResult | Exception) -> None:
        self.members.remove(member)
        member.close()
        self.finished(member.job, outcome)

    def _each(self, members: Sequence[_Member], act: Callable[[_Member], None]) -> None:
        """Does something for each run; one for which it fails leaves."""
        for member in list(members):
            try:
                act(member)
            except Exception as error:
                self._drop(member, error)

    def close(self) -> None:
        """Closes the files of runs that are not finished."""
        for member in self.members:
            member.close()

    # --- Training.

    def advance(self, bar: TrainingBar, stopped: threading.Event) -> None:
        """One step of every run, and what is due after it."""
        batches = {member.slot: next(member.position) for member in self.members}
        shared, own = _arranged(
            batches, self.slots, len({member.order for member in self.members}) == 1
        )
        wait_on_cpu([metrics for _, metrics in self.pending[-1:]])
        self.state, metrics = self.programs.train(self.state, self.frozen, shared, own)
        for member in self.members:
            batch = batches[member.slot]
            member.tokens += int(batch["mask"][batch["weight"] > 0].sum())
            member.step += 1
        self.pending.append(([(member, member.step) for member in self.members], metrics))
        train, stop = self.wide.train, stopped.is_set()
        at = lambda every: [member for member in self.members if member.step % every == 0]
        ending = [member for member in self.members if member.step == member.steps]
        saving = (
            self.members
            if stop
            else [
                *dict.fromkeys([*at(train.checkpoint_every), *ending, *self._judged(self.members)])
            ]
        )
        evaluating = (
            []
            if train.eval_every is None
            else [member for member in at(train.eval_every) if member.step < member.steps]
        )
        if at(train.log_every) or saving or evaluating:
            self._flush(bar)
        self._evaluate([member for member in evaluating if member in self.members])
        self._each([member for member in saving if member in self.members], self._save)
        self._share(self.members, "seconds")
        if stop:
            raise Interrupted(max(member.step for member in self.members) if self.members else 0)
        self._judge(self._judged(self.members))
        self._finish([member for member in ending if member in self.members])

    def _flush(self, bar: TrainingBar) -> None:
        """Fetches and writes the metrics since the last time. A run whose loss is not finite
        leaves: the others are not touched by it.
        """
        losses: dict[_Member, float] = {}
        for members, metrics in jax.device_get(self.pending):
            for member, step in members:
                row = {name: float(values[member.slot]) for name, values in metrics.items()}
                if member in self.members:
                    self._each(
                        [member], lambda member, step=step, row=row: self._write(member, step, row)
                    )
                    losses[member] = row["loss"]
        self.pending.clear()
        self._share(self.members, "training", "seconds")
        if losses:
            rate = sum(member.tokens for member in self.members) / max(
                sum(member.training for member in self.members), 1e-9
            )
            bar.update(
                max(member.step for member in losses), float(np.mean(list(losses.values()))), rate
            )

    def _write(self, member: _Member, step: int, row: dict[str, float]) -> None:
        check_finite(step, row)
        member.log.write(step, "train", row)

    def _save(self, member: _Member) -> None:
        member.checkpoints.save(_take(self.state, member.slot), member.position.get_state())

    def _scores(self, split: str) -> list[dict[str, float]]:
        """The scores of all slots: the same batches for all."""
        batches = evaluation_batches(self.wide, self.task, split)
        sums = jax.device_get(
            [self.programs.evaluate(self.frozen, self.state.trainable, batch) for batch in batches]
        )
        own = lambda slot: [jax.tree.map(lambda x: x[slot], one) for one in sums]
        return [
            evaluate(lambda frozen, trainable, one: one, None, None, own(slot))
            for slot in range(self.slots)
        ]

    def _evaluate(self, members: Sequence[_Member]) -> None:
        if members:
            scores = self._scores("validation")
            self._each(
                members,
                lambda member: member.log.write(member.step, "validation", scores[member.slot]),
            )

    def _judged(self, members: Sequence[_Member]) -> list[_Member]:
        return [
            member
            for member in members
            if member in self.members
            and member.step in member.job.rungs
            and member.step < member.steps
        ]

    def _judge(self, members: Sequence[_Member]) -> None:
        if members and self.judge is not None:
            scores = self._scores("validation")
            for member in members:
                if not self.judge(member.job, member.step, scores[member.slot]):
                    self._drop(member, Stopped(member.step, scores[member.slot]))

    def _finish(self, ending: Sequence[_Member]) -> None:
        if not ending:
            return
        found: dict[_Member, dict[str, dict[str, Score]]] = {member: {} for member in ending}
        for split in ("validation", "test"):
            scores = self._scores(split)
            for member in ending:
                score = scores[member.slot]
                found[member][split] = loss_and_accuracy(self.task, score)
                self._each(
                    [member] if member in self.members else [],
                    lambda m, s=split, v=score: m.log.write(m.steps, s, v),
                )
        self._share(self.members, "seconds")
        self._each(
            [member for member in ending if member in self.members],
            lambda member: self._conclude(member, found[member]),
        )

    def _conclude(self, member: _Member, scores: dict[str, dict[str, Score]]) -> None:
        state = _take(self.state, member.slot)
        check_reached(state)
        config = member.job.config
        names = dict(
            base=self.task.base, model=config.model.name, label_names=self.task.label_names
        )
        save_adapter(member.job.folder / "adapter", trim(state.trainable), **names)
        scores["test"] |= metric_scores(
            self.task, self.frozen, state.trainable, batch_size=config.train.eval_batch_size
        )
        outcome = RunResult(
            scores=scores,
            primary=self.task.primary.name,
            examples={split: len(encoded) for split, encoded in self.task.splits.items()},
            steps=member.steps,
            **sizes(self.frozen, state.trainable),
            peak_bytes=self._peak_share(),
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            tokens_per_second=round(member.tokens / member.training, 1)
            if member.training and member.tokens
            else None,
            compile_seconds=round(member.compiling, 3),
            padding_fraction=member.padding,
            seconds=round(member.seconds, 3),
            note=self.task.note,
            stacked=self.slots,
        )
        self._drop(member, outcome)

    # --- Shares of time and memory.

    def _compile_seconds(self) -> float:
        return self.programs.train.compile_seconds + self.programs.evaluate.compile_seconds

    def _share(self, members: Sequence[_Member], *kinds: str) -> None:
        """The time since the last call, compilation apart, in equal parts to the runs."""
        now, compiled = time.perf_counter(), self._compile_seconds()
        spent, compiling = now - self.clock, compiled - self.compiled
        self.clock, self.compiled = now, compiled
        for member in members:
            member.seconds += spent / len(members)
            member.compiling += compiling / len(members)
            if "training" in kinds:
                member.training += max(spent - compiling, 0.0) / len(members)

    def _peak_share(self) -> int | None:
        """What a run alone would take at its peak, about: the base, its own state, and the
        temporaries of one adapter.
        """
        memory, base = self.programs.train.largest(), bytes_of(self.frozen)
        if memory is None:
            return None
        return (
            base
            + (memory.arguments - base + memory.new_results) // self.slots
            + memory.temporaries // lanes_for(self.slots)
        )


def _arranged(
    batches: dict[int, Any], slots: int, same: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all slots read alike, and what each has its own: one of the two is empty. Short batches
    are padded to the longest.
    """
    first = next(iter(batches.values()))
    if same:
        return dict(first), {}
    every = [batches.get(slot, first) for slot in range(slots)]
    own = {}
    for name in first:
        arrays = [np.asarray(batch[name]) for batch in every]
        shape = tuple(max(sizes) for sizes in zip(*(array.shape for array in arrays)))
        own[name] = np.stack(
            [
                np.pad(array, [(0, to - has) for to, has in zip(shape, array.shape)])
                for array in arrays
            ]
        )
    return {}, own


def _stack(states: Sequence[TrainState]) -> TrainState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@functools.partial(jax.jit, donate_argnums=0)
def _put(state: TrainState, slot: Any, one: TrainState) -> TrainState:
    return jax.tree.map(lambda all, new: all.at[slot].set(new), state, one)


@jax.jit
def _take(state: TrainState, slot: Any) -> TrainState:
    return jax.tree.map(lambda all: all[slot], state)
