"""The training loop: runs side by side on one frozen base, resumable at any step, with every figure
measured. A single run is a list of one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.config import Config
from lora_jax.core import hosts
from lora_jax.io.reading_bar import reading_shown
from lora_jax.tasks.opening import open_task
from lora_jax.tasks.task import Task
from lora_jax.training.checkpoint import DamagedCheckpoint
from lora_jax.training.handing import Asked, Judge, check_same_data, handed
from lora_jax.training.interrupted import Interrupted, Stopped, stop_signals
from lora_jax.training.programs import programs_for
from lora_jax.training.progress import TrainingBar
from lora_jax.training.result import RunResult
from lora_jax.training.run import (
    Run,
    check_finite,
    evaluation_batches,
    initial_state,
    sizes,
    steps_of,
)
from lora_jax.training.sharing import differences, stack_key
from lora_jax.training.slots import Evaluated, Slots
from lora_jax.training.step import TrainState

Finished = Callable[[Run, "RunResult | Exception"], None]


def train(
    config: Config,
    folder: Path,
    *,
    task: Task | None = None,
    wide: Config | None = None,
    score_test: bool = True,
    quiet: bool = False,
    title: str = "training",
) -> RunResult:
    """Trains one run in `folder`, from its newest checkpoint if there is one, and returns its
    measured result.

    The folder gets metrics.jsonl, TensorBoard events, checkpoints and the adapter. The loss curve
    of a run that was stopped and resumed equals that of an uninterrupted one bit for bit.

    Args:
        config: one run, without a sweep.
        task: the config's, which its caller holds for the next run; without one it is opened here.
        wide: a run with the largest rank and all targets of a group; see `fit`.
        score_test: whether the test split is scored; see `fit`.

    Raises:
        Diverged: the loss is NaN or infinite; the message says since which step.
        Interrupted: SIGTERM or SIGINT came.
        ValueError: the configuration does not fit the model or the data.
    """
    outcomes: list[RunResult | Exception] = []
    fit(
        [Run(config, folder)],
        lambda run, outcome: outcomes.append(outcome),
        task_of=open_task if task is None else lambda config: task,
        wide=wide,
        score_test=score_test,
        quiet=quiet,
        title=title,
    )
    if not outcomes:
        raise Interrupted(0)
    if isinstance(outcomes[0], Exception):
        raise outcomes[0]
    return outcomes[0]


def fit(
    runs: Iterable[Run],
    finished: Finished,
    *,
    task_of: Callable[[Config], Task] = open_task,
    wide: Config | None = None,
    slots: int = 1,
    judge: Judge | None = None,
    saved: Callable[[Run], None] | None = None,
    score_test: bool = True,
    quiet: bool = False,
    title: str = "training",
) -> None:
    """Trains runs side by side, `slots` at a time, and gives each one's result, or its error, to
    `finished` as soon as it is known.

    Every run gets the losses, factors, files, scores and result that it gets alone, up to the order
    of sums: figures of memory and time are its share. A run that diverges or cannot be written
    fails by itself and its slot goes to the next. Each goes on from its newest checkpoint that can
    be read; runs that were interrupted together go on together, bit for bit.

    Args:
        runs: taken one by one as slots become free.
        task_of: gives the runs' task, and is asked when the first one is there.
        wide: a run into whose rank and targets all fit (`lora_jax.training.sharing.widest`); needed
            for more than one slot. Each adapter is padded with zeros to its shapes, so that all run
            one compiled program; the padding is not trained, counted or saved.
        judge: asked at each run's rungs with the scores on the validation split; False stops the
            run.
        saved: called with each run that has written a checkpoint. What it raises ends the run.
        score_test: whether runs are scored on the test split. One that was not is so later, from
            its last checkpoint, without a step of training.

    Raises:
        Interrupted: SIGTERM or SIGINT came; all runs have checkpoints.
    """
    runs, judge = handed(iter(runs), judge, wide=wide, slots=slots, score_test=score_test)
    with stop_signals() as event:
        stopped = Asked(event)
        splits = ("validation", "test") if score_test else ("validation",)
        group = Group(runs, finished, task_of, wide, slots, judge, stopped, splits)
        try:
            with reading_shown(quiet=quiet):
                group.fill()
            if stopped.is_set() and group.runs:
                raise Interrupted(group.last_step)
            most = max((run.steps for run in group.runs), default=0)
            with TrainingBar(title, most, group.last_step, quiet=quiet) as bar:
                while group.runs:
                    advance(group)
                    after_step(group, bar, saved)
                    group.fill()
        except Exception as error:
            if not isinstance(error, Interrupted):
                hosts.all_failed(error)
            raise
        finally:
            group.close()


def advance(group: Group) -> None:
    """One step of every run. Metrics stay on the device until they are logged."""
    # What fixes the next batch: runs that agree in it read one.
    orders = {(run.config.train.seed, run.step) for run in group.runs}
    batches = {run.slot: run.next_batch() for run in group.runs}
    is_first = group.slots.load(batches, alike=len(orders) == 1)
    if is_first:
        group.settle(training=True)
    metrics = group.slots.step()
    for run in group.runs:
        run.step += 1
        if not is_first:
            run.count(batches[run.slot])
    # A length's first pass is no speed: besides compiling it touches its memory, page by page.
    if is_first:
        group.settle()
    group.pending.append(([(run, run.step) for run in group.runs], metrics))


def after_step(group: Group, bar: TrainingBar, saved: Callable[[Run], None] | None = None) -> None:
    """What is due after a step: rows of the log, evaluations, checkpoints, judgements and ends.

    Raises:
        Interrupted: a signal has come; every run has a checkpoint.
    """
    stop = group.stopped.is_set()
    every = group.runs[0].config.train
    evaluating = [run for run in group.runs if run.is_evaluated]

    def saving() -> list[Run]:
        return [
            run
            for run in group.runs
            if stop or run.is_at(every.checkpoint_every) or run.is_over or run.is_judged
        ]

    if evaluating or saving() or any(run.is_at(every.log_every) for run in group.runs):
        write_log(group, bar)
    # Before the checkpoint: a run that is killed between the two must not lose the row.
    evaluate(group, evaluating)
    save(group, saving(), saved)  # Who has lost patience is over now.
    if stop and group.runs:
        raise Interrupted(group.last_step)
    ask_judge(group, group.runs)
    finish(group, group.runs)


def write_log(group: Group, bar: TrainingBar) -> None:
    """Fetches and writes the metrics since the last time. A run whose loss is not finite leaves:
    the others are not touched by it.
    """
    losses: dict[Run, float] = {}

    def write(run: Run, step: int, row: dict[str, float]) -> None:
        check_finite(step, row)
        run.log.write(step, "train", row)

    for stepped, metrics in jax.device_get(group.pending):
        for run, step in stepped:
            row = {name: float(x) for name, x in group.slots.of(metrics, run.slot).items()}
            group.each([run], lambda run, step=step, row=row: write(run, step, row))
            losses[run] = row["loss"]
    group.pending.clear()

    group.share_time(training=True)
    if losses and group.runs:
        clocks = [run.clock for run in group.runs]
        seconds = sum(clock.training for clock in clocks)
        rate = sum(clock.tokens for clock in clocks) / seconds if seconds else None
        bar.update(max(run.step for run in losses), float(np.mean(list(losses.values()))), rate)


def evaluate(group: Group, runs: Sequence[Run]) -> None:
    """Writes the runs' scores on the validation split."""
    if runs := group.still(runs):
        scores = group.scores("validation")

        def note(run: Run) -> None:
            run.log.write(run.step, "validation", scores[run.slot].means)
            if run.ends_epoch:
                run.compare(group.slots.take(run.slot), scores[run.slot])
                run.lose_patience()

        group.each(runs, note)
        group.share_time()


def save(group: Group, runs: Sequence[Run], saved: Callable[[Run], None] | None = None) -> None:
    """Writes the runs' checkpoints."""

    def write(run: Run) -> None:
        run.save(group.slots.take(run.slot), group.slots.peak_bytes())
        if saved is not None:
            saved(run)

    if runs := group.still(runs):
        group.each(runs, write)
        group.share_time()


def ask_judge(group: Group, runs: Sequence[Run]) -> None:
    """Asks the judge about those of the runs that stand at a rung, and stops those that are to
    stop.
    """
    runs = [run for run in runs if run.is_judged]
    if group.judge is None or not runs:
        return
    scores = group.scores("validation")
    group.share_time()
    for run in runs:
        score = scores[run.slot].means
        if not group.judge(run, run.step, score):
            group.leave(run, Stopped(run.step, score))


def finish(group: Group, runs: Sequence[Run]) -> None:
    """Scores those of the runs that have taken their last step, writes their adapters, and lets
    them leave with their results.

    Raises:
        Interrupted: a signal has come; every run has a checkpoint.
    """
    ending = [run for run in runs if run.is_over]
    if not ending:
        return
    select(group, [run for run in ending if run.ends_epoch])
    evaluated: dict[Run, dict[str, Evaluated]] = {run: {} for run in ending}
    for split in group.splits:
        try:
            scores = group.scores(split, until_stopped=True)
        except Interrupted:
            save(group, [run for run in group.runs if run.step])
            raise

        def note(run: Run, split: str = split, scores: Any = scores) -> None:
            evaluated[run][split] = scores[run.slot]
            run.log.write(run.steps, split, scores[run.slot].means)

        group.each(ending, note)

    scored: dict[Run, Any] = {}

    def conclude(run: Run) -> None:
        scored[run] = run.conclude(group.slots.take(run.slot), evaluated[run])

    group.each(ending, conclude)
    group.share_time()
    slots = group.slots
    for run in group.still(ending):
        own = sizes(slots.frozen, slots.take(run.slot).trainable)
        # What it would take alone.
        own |= {
            "peak_bytes": run.at_peak(slots.peak_bytes()),
            "stacked": len(slots) if len(slots) > 1 else None,
        }
        group.leave(run, run.result(scored[run], **own))


def select(group: Group, runs: Sequence[Run]) -> None:
    """Puts the best epochs of runs that have taken their last step into their slots."""
    if not (runs := group.still(runs)):
        return
    scores, chosen = group.scores("validation"), {}

    def choose(run: Run) -> None:
        state = group.slots.take(run.slot)
        run.compare(state, scores[run.slot])
        chosen[run.slot] = run.selected(state)

    group.each(runs, choose)
    if chosen:
        group.slots.put(chosen)


class Group:
    """The runs in slots, the states that they have there, and those that wait for a slot."""

    def __init__(
        self,
        waiting: Iterator[Run],
        finished: Finished,
        task_of: Callable[[Config], Task],
        wide: Config | None,
        slots: int,
        judge: Judge | None,
        stopped: Asked,
        splits: Sequence[str],
    ) -> None:
        self._waiting, self._finished, self._task_of = waiting, finished, task_of
        self._wide, self._count = wide, slots
        self.judge, self.stopped, self.splits = judge, stopped, splits
        self.runs: list[Run] = []
        self.pending: list[tuple[list[tuple[Run, int]], Any]] = []
        self.slots: Slots | None = None  # made for the first run
        self._clock, self._compiled = time.perf_counter(), 0.0

    @property
    def last_step(self) -> int:
        """The step of the run that is farthest."""
        return max((run.step for run in self.runs), default=0)

    # --- Runs come and go.

    def fill(self) -> None:
        """Puts the next runs into the free slots, each at its newest checkpoint."""
        while firsts := self._next_runs():
            try:
                states = self._restored(firsts)
            except BaseException:
                for run in firsts:
                    run.close()
                raise
            if not states:
                continue
            self.slots.put({run.slot: state for run, state in states.items()})
            new = list(states)
            del firsts, states
            self.runs += new
            self.share_time()
            # A run that was killed after its last step was not scored, and one that was killed at
            # its rung not judged there.
            finish(self, new)
            ask_judge(self, self.still(new))

    def leave(self, run: Run, outcome: RunResult | Exception) -> None:
        """The run's slot is free again, and its outcome known."""
        self.runs.remove(run)
        run.close()
        self._finished(run, outcome)

    def still(self, runs: Sequence[Run]) -> list[Run]:
        """Those of the runs that have not left."""
        return [run for run in runs if run in self.runs]

    def each(self, runs: Sequence[Run], act: Callable[[Run], None]) -> None:
        """Does something for each of the runs that have not left; one for which it fails leaves."""
        for run in self.still(runs):
            try:
                with hosts.agreeing("each"):
                    act(run)
            except Exception as error:
                self.leave(run, error)

    def close(self) -> None:
        """Closes the files of runs that have not left."""
        for run in self.runs:
            run.close()

    def _next_runs(self) -> dict[Run, TrainState]:
        """Opened runs for the free slots, with their states before the first step."""
        found: dict[Run, TrainState] = {}
        taken = {run.slot for run in self.runs}
        for slot in range(self._count):
            while slot not in taken and not self.stopped.is_set():
                if (run := next(self._waiting, None)) is None:
                    return found
                try:
                    hosts.seen_by_all(run.folder)
                    with hosts.agreeing("open"):
                        found[run] = self._opened(run, slot)
                    taken.add(slot)
                except Exception as error:
                    found.pop(run, None)
                    self._finished(run, error)
        return found

    def _opened(self, run: Run, slot: int) -> TrainState:
        if self.slots is None:
            self._begin(run.config)
        if stack_key(run.config) != stack_key(self._first):
            raise ValueError(
                f"{run.folder.name} cannot be trained beside the others: "
                f"{'; '.join(differences(run.config, self._first))}."
            )
        steps = steps_of(run.config, self._task)
        made = initial_state(
            run.config, self._task, steps, like=self._like, frozen=self.slots.frozen
        )
        self.slots.frozen, first = jax.block_until_ready(made)
        run.open(self._task, slot)
        return first

    def _begin(self, first: Config) -> None:
        """What the first run fixes for all: the task, the programs, and the shapes that each is
        padded to.
        """
        with hosts.agreeing("read"):
            self._first, self._task = first, self._task_of(first)
        check_same_data(first, self._task)
        self._like = None if self._wide is None else self._task.widest(self._wide)
        steps = steps_of(first, self._task)
        self.slots = Slots(programs_for(self._task.per_example, first, steps, self._count))
        self._compiled = self.slots.programs.compile_seconds

    def _restored(self, firsts: dict[Run, TrainState]) -> dict[Run, TrainState]:
        """The states of the newest checkpoints that can be read. Of runs that were interrupted in
        the midst of writing theirs, of the newest that all have.
        """
        there = {run: {0, *hosts.leaders("at", run.checkpoints.steps())} for run in firsts}
        while True:
            newest = {run: max(steps) for run, steps in there.items()}
            common = max(set.intersection(*there.values()))
            every = self._first.train.checkpoint_every
            near = max(newest.values()) - common <= every

            states: dict[Run, TrainState] = {}
            for run in list(there):
                step = common if near else newest[run]
                try:
                    with hosts.agreeing("restore"):
                        states[run] = run.restore(firsts[run], step)
                except Exception as error:
                    states.pop(run, None)
                    if hosts.leaders("damaged", isinstance(error, DamagedCheckpoint)):
                        aside = run.checkpoints.pass_over(step)
                        there[run].remove(step)
                        warnings.warn(
                            f"{error}. It was moved to {aside}, and the one before it is used.",
                            stacklevel=2,
                        )
                        continue
                    del there[run]
                    run.close()
                    self._finished(run, error)
            if len(states) == len(there):
                return states

    # --- What is done for all slots at once.

    def scores(self, split: str, *, until_stopped: bool = False) -> list[Evaluated]:
        """What every slot gives on a split."""

        def batches() -> Iterator[Any]:
            for batch in evaluation_batches(self._first, self._task, split):
                if until_stopped and self.stopped.is_set():
                    raise Interrupted(self.last_step)
                yield batch

        return self.slots.evaluate(batches())

    def settle(self, *, training: bool = False) -> None:
        """Waits for the steps so far, and shares their time as `share_time` does."""
        self.slots.wait()
        self.share_time(training=training)

    def share_time(self, *, training: bool = False) -> None:
        """The time since the last call in equal parts to the runs; `training` is whether it was
        that of training steps of known shapes, but for what compiling took.
        """
        now, compiled = time.perf_counter(), self.slots.programs.compile_seconds
        spent, compiling = now - self._clock, compiled - self._compiled
        self._clock, self._compiled = now, compiled
        for run in self.runs:
            run.clock.seconds += spent / len(self.runs)
            run.clock.compiling += compiling / len(self.runs)
            if training:
                run.clock.training += max(spent - compiling, 0.0) / len(self.runs)
