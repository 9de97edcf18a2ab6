"""One training run from a configuration to a result: resumable at any step, with every figure
measured.
"""

from __future__ import annotations

import functools
import resource
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.adapters.checks import check_start, flags_of_optimizer, unreached
from lora_jax.adapters.stacking import pad, trim
from lora_jax.adapters.surgery import trainable_parameters
from lora_jax.config import Config, OptimConfig, config_hash
from lora_jax.core.init import initializer_named
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray, bytes_of
from lora_jax.data import total_steps
from lora_jax.io.adapter import save_adapter
from lora_jax.metrics.score import Score
from lora_jax.tasks.losses import PerExample, Summed
from lora_jax.tasks.opening import open_task
from lora_jax.tasks.predictions import metric_scores
from lora_jax.tasks.task import Task
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.compile import Program, lanes_for, wait_on_cpu
from lora_jax.training.evaluation import evaluate
from lora_jax.training.interrupted import Interrupted, stop_signals
from lora_jax.training.kept_memory import program_for
from lora_jax.training.metrics import MetricsLog
from lora_jax.training.optim import make_optimizer, structure_of
from lora_jax.training.progress import TrainingBar
from lora_jax.training.result import RunResult
from lora_jax.training.step import (
    TrainState,
    create_state,
    make_eval_step,
    make_stacked_eval_step,
    make_stacked_step,
    make_train_step,
)


class Diverged(FloatingPointError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class Programs:
    """The compiled training and evaluation steps that runs of one structure share."""

    train: Program
    evaluate: Program


def train(
    config: Config,
    folder: Path,
    *,
    task: Task | None = None,
    wide: Config | None = None,
    quiet: bool = False,
    title: str = "training",
) -> RunResult:
    """Trains one run in `folder`, from its newest checkpoint if there is one, and returns its
    measured result.

    The folder gets metrics.jsonl, TensorBoard events, checkpoints and the adapter. The loss curve
    of a run that was stopped and resumed equals that of an uninterrupted one bit for bit.

    Args:
        config: one run, without a sweep.
        wide: a run with the largest rank and all targets of a group. The adapter is padded with
            zeros to its shapes, so that the whole group runs one compiled program; the padding is
            not trained, counted or saved.
        task: the config's, which its caller holds for the next run; without one it is opened here.

    Raises:
        Diverged: the loss is NaN or infinite; the message says since which step.
        Interrupted: SIGTERM or SIGINT came.
        ValueError: the configuration does not fit the model or the data.
    """
    start = time.perf_counter()
    task = open_task(config) if task is None else task
    steps = steps_of(config, task)
    options = dict(seed=config.train.seed, accumulate=config.train.accumulate)
    batches = task.batches("train", config.train.batch_size, **options)
    frozen, state = jax.block_until_ready(initial_state(config, task, steps, wide=wide))
    programs = programs_for(task.per_example, *structure_of_steps(config, steps))
    compile_before = programs.train.compile_seconds
    checkpoints = Checkpoints(folder / "checkpoints", base=task.base, run=config_hash(config))
    log = MetricsLog(folder)
    try:
        iterator = iter(batches)
        if checkpoints.latest() is not None:
            state, position = checkpoints.restore(state)
            iterator.set_state(position)
        elif initializer_named(config.lora.init).reads != "format":
            # What chooses codes starts nearer to the base before quantisation than the frozen one.
            check_start(state.trainable)
        log.resume(int(state.step), steps)
        speed = Speed(programs.train)
        with (
            TrainingBar(title, steps, int(state.step), quiet=quiet) as bar,
            stop_signals() as stopped,
        ):
            state = _run_steps(
                config,
                task,
                programs,
                frozen,
                state,
                iterator,
                steps,
                checkpoints,
                log,
                speed,
                bar,
                stopped,
            )
        check_reached(state)
        scores = _scores(config, task, programs, frozen, state, log, steps)
        save_adapter(
            folder / "adapter",
            trim(state.trainable),
            base=task.base,
            model=config.model.name,
            label_names=task.label_names,
        )
    finally:
        checkpoints.close()
        log.close()
    return RunResult(
        scores=scores,
        primary=task.primary.name,
        examples={split: len(encoded) for split, encoded in task.splits.items()},
        steps=steps,
        **sizes(frozen, state.trainable),
        peak_bytes=_peak_bytes(programs.train, state, frozen, batches),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        tokens_per_second=speed.total(),
        compile_seconds=round(programs.train.compile_seconds - compile_before, 3),
        padding_fraction=round(batches.padding_fraction, 4),
        seconds=round(time.perf_counter() - start, 3),
        note=task.note,
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
            (
                f"{len(silent)} trained arrays never had a gradient other than 0, such as {named}: "
                "they did not learn."
            ),
            stacklevel=3,
        )


def steps_of(config: Config, task: Task) -> int:
    """Optimiser steps of the run."""
    if config.train.total_steps is not None:
        return config.train.total_steps
    return total_steps(len(task.splits["train"]), config.train.batch_size, config.train.epochs)


def initial_state(
    config: Config, task: Task, steps: int, *, wide: Config | None = None
) -> tuple[dict[str, Any], TrainState]:
    """The frozen weights and the state before the first step; everything random in them follows
    from the run's seed.
    """
    key, run_key = jax.random.split(jax.random.key(config.train.seed))
    frozen, trainable = task.trainable(config, key)
    if wide is not None:
        trainable = pad(trainable, task.widest(wide))
    return frozen, create_state(trainable, make_optimizer(config.optim, steps), run_key)


@functools.lru_cache(maxsize=8)
def programs_for(
    per_example: PerExample,
    optim: OptimConfig,
    steps: int,
    accumulate: int,
    slots: int | None = None,
    lanes: int | None = None,
) -> Programs:
    """The programs of runs that agree in these; see `structure_of_steps`. With `slots`, of so many
    runs side by side.
    """
    loss = Summed(per_example)
    step, score = (
        make_train_step(loss, make_optimizer(optim, steps), accumulate=accumulate),
        make_eval_step(loss),
    )
    if slots is not None:
        lanes = lanes_for(slots) if lanes is None else lanes
        step, score = (
            make_stacked_step(step, slots, lanes),
            make_stacked_eval_step(score, slots, lanes),
        )
    return Programs(program_for(step, donate=(0,)), program_for(score))


def structure_of_steps(config: Config, steps: int) -> tuple[OptimConfig, int, int]:
    """What a run's training program depends on besides its model and shapes: the optimiser without
    what is data to it, the number of steps if a rank budget is spread over them (else 1), and the
    micro-batches.
    """
    return (
        structure_of(config.optim),
        steps if config.optim.adalora.target_rank is not None else 1,
        config.train.accumulate,
    )


def sizes(frozen: Mapping[str, Any], trainable: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes measured from the stored arrays.

    trainable_parameters: entries that are trained. base_bytes: what is kept of the base (nothing
    under full fine-tuning: then all of it is trained). base_bits_per_weight: bits a weight of those
    that are quantised, 32 (or 16) if none is.
    """
    leaves = list(flatten(frozen).values())
    quantized = [leaf for leaf in leaves if isinstance(leaf, QuantizedArray)]
    bits = [(bytes_of(leaf), leaf.size) for leaf in quantized or leaves]
    trimmed = trim(trainable)
    return {
        "trainable_parameters": trainable_parameters(trimmed),
        "base_bytes": bytes_of(frozen),
        "base_bits_per_weight": round(8 * sum(b for b, _ in bits) / sum(n for _, n in bits), 4)
        if bits
        else None,
        "adapter_bytes": sum(
            bytes_of([getattr(leaf, name) for name in leaf.trained_fields()])
            for leaf in trimmed.values()
        ),
    }


def _run_steps(
    config: Config,
    task: Task,
    programs: Programs,
    frozen: Any,
    state: TrainState,
    iterator: Any,
    steps: int,
    checkpoints: Checkpoints,
    log: MetricsLog,
    speed: Speed,
    bar: TrainingBar,
    stopped: threading.Event,
) -> TrainState:
    train, pending = config.train, []
    for step in range(int(state.step), steps):
        batch = next(iterator)
        wait_on_cpu(pending[-1:])
        state, metrics = programs.train(state, frozen, batch)
        pending.append((step + 1, metrics))
        speed.count(int(batch["mask"][batch["weight"] > 0].sum()))
        done, stop = step + 1, stopped.is_set()
        evaluates = train.eval_every is not None and done % train.eval_every == 0 and done < steps
        saves = done % train.checkpoint_every == 0 or done == steps or stop
        if done % train.log_every == 0 or done == steps or saves or evaluates:
            _flush(pending, log, speed, bar)
        # Before the checkpoint: a run that is killed between the two must not lose the row.
        if evaluates:
            with speed.paused():
                log.write(
                    done,
                    "validation",
                    _evaluate(config, task, programs, frozen, state, "validation"),
                )
        if saves:
            with speed.paused():
                checkpoints.save(state, iterator.get_state())
        if stop:
            raise Interrupted(done)
    return state


def check_finite(step: int, metrics: Mapping[str, Any]) -> None:
    """Raises Diverged if a step's loss or gradient is not finite."""
    if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"]):
        raise Diverged(
            f"The loss at step {step} is {metrics['loss']} and its gradient's norm "
            f"{metrics['grad_norm']}: training diverged. Lower "
            "optim.learning_rate, or set optim.clip_norm; with compute_dtype bfloat16, try float32."
        )


def _flush(pending: list[tuple[int, Any]], log: MetricsLog, speed: Speed, bar: TrainingBar) -> None:
    """Fetches and writes the metrics of the steps since the last time; they stay on the device
    until then.
    """
    for step, metrics in jax.device_get(pending):
        check_finite(step, metrics)
        log.write(step, "train", {name: float(value) for name, value in metrics.items()})
    step, loss = pending[-1][0], float(metrics["loss"])
    pending.clear()
    bar.update(step, loss, speed.recent())


def _scores(
    config: Config,
    task: Task,
    programs: Programs,
    frozen: Any,
    state: TrainState,
    log: MetricsLog,
    steps: int,
) -> dict[str, dict[str, Score]]:
    """Validation and test scores after training, by split and name."""
    found: dict[str, dict[str, Score]] = {}
    for split in ("validation", "test"):
        score = _evaluate(config, task, programs, frozen, state, split)
        log.write(steps, split, score)
        found[split] = loss_and_accuracy(task, score)
    found["test"] |= metric_scores(
        task, frozen, state.trainable, batch_size=config.train.eval_batch_size
    )
    return found


def loss_and_accuracy(task: Task, score: Mapping[str, float]) -> dict[str, Score]:
    """The scores that the sums of an evaluation give, with what they were counted on."""
    unit, count = task.primary.unit, int(score["examples"])
    options: dict[str, Any] = dict(unit=unit, count=count)
    found = {"loss": Score("loss", score["loss"], higher_is_better=False, **options)}
    if "accuracy" in score:
        share = task.primary.is_right_or_wrong
        found["accuracy"] = Score("accuracy", score["accuracy"], share=share, **options)
    return found


def _evaluate(
    config: Config, task: Task, programs: Programs, frozen: Any, state: TrainState, split: str
) -> dict[str, float]:
    return evaluate(
        programs.evaluate, frozen, state.trainable, evaluation_batches(config, task, split)
    )


def evaluation_batches(config: Config, task: Task, split: str) -> Iterator[Any]:
    """The batches that a split's scores are computed on: all, or for a capped validation split so
    many, spread evenly over all lengths.
    """
    batches = task.batches(split, config.train.eval_batch_size, shuffle=False, epochs=1)
    limit = config.train.eval_examples if split == "validation" else None
    count = (
        len(batches)
        if limit is None
        else min(len(batches), -(-limit // config.train.eval_batch_size))
    )
    # Batches come longest first: the first of them alone would be a sample of long texts.
    return (
        batches[index]
        for index in np.linspace(0, len(batches) - 1, count).round().astype(int).tolist()
    )


def _peak_bytes(program: Program, state: TrainState, frozen: Any, batches: Any) -> int | None:
    peaks = [program.peak_bytes(state, frozen, batch) for batch in one_batch_a_shape(batches)]
    return None if None in peaks else max(peaks)


def one_batch_a_shape(batches: Any) -> Iterator[Any]:
    """The first batch of each shape of an epoch."""
    seen = set()
    for index, planned in enumerate(batches.plan(0)):
        if planned.length not in seen:
            seen.add(planned.length)
            yield batches[index]


class Speed:
    """Real tokens a second, without the time that compilation, checkpoints and evaluation take."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._paused_seconds = 0.0
        self._tokens = 0
        self._marks = [self._mark()]

    def count(self, tokens: int) -> None:
        """Counts a batch's real tokens."""
        self._tokens += tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        start = time.perf_counter()
        yield
        self._paused_seconds += time.perf_counter() - start

    def recent(self) -> float | None:
        """Since the last call."""
        self._marks.append(self._mark())
        return self._rate(self._marks[-2], self._marks[-1])

    def total(self) -> float | None:
        """Since the start, up to the last call of `recent`."""
        return self._rate(self._marks[0], self._marks[-1])

    def _mark(self) -> tuple[float, int]:
        return (
            time.perf_counter() - self._paused_seconds - self._program.compile_seconds,
            self._tokens,
        )

    def _rate(self, old: tuple[float, int], new: tuple[float, int]) -> float | None:
        seconds = new[0] - old[0]
        return round((new[1] - old[1]) / seconds, 1) if seconds > 0 and new[1] > old[1] else None
