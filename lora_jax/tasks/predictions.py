"""Predictions of a task's model for the examples of a split, and the scores that they have."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lora_jax.metrics.predictions import Prediction, Predictions
from lora_jax.metrics.score import Score
from lora_jax.metrics.table import METRICS, Primary
from lora_jax.tasks.losses import PerExample
from lora_jax.tasks.task import Task


def predict(
    task: Task,
    frozen: Mapping[str, Any],
    trainable: Mapping[str, Any],
    split: str,
    *,
    batch_size: int = 64,
    examples: int | None = None,
) -> Predictions:
    """A prediction for every example of a split, or for the first `examples`, in the order of the
    records.

    Of a language model it is the loss on its completion and how many tokens of it are the
    likeliest; texts are made by `generate_predictions`.

    Raises:
        ValueError: there is no such split.
    """
    batches = task.batches(split, batch_size, shuffle=False, epochs=1, packed=False)
    encoded = task.splits[split]
    limit = len(encoded) if examples is None else examples
    step = row_losses(task.per_example)

    def batch_rows() -> Iterator[tuple[list[int], Mapping[str, Any]]]:
        for number, planned in enumerate(batches.plan(0)):
            members = task.examples_of(planned)
            if any(index < limit for index in members):
                yield members, jax.device_get(step(frozen, trainable, batches[number]))

    found = predictions_of(task, split, batch_rows())
    return replace(found, rows=found.rows[:limit])


def predictions_of(
    task: Task, split: str, batches: Iterable[tuple[Sequence[int], Mapping[str, Any]]]
) -> Predictions:
    """The predictions of a split in the order of its records, from the examples of each batch and
    what their rows gave (`Losses.rows`, on the host).
    """
    encoded = task.splits[split]
    rows: dict[int, Prediction] = {}
    for members, out in batches:
        for place, index in enumerate(members):
            numbers = {name: float(out[name][place]) for name in ("loss", "units", "correct")}
            answer = task.answer(split, index, out["answer"][place]) if "answer" in out else ()
            compared = dict(zip(("predicted", "references"), answer))
            rows[index] = Prediction(
                id=example_id(encoded, index),
                **numbers,
                **compared,
                task=task_name(task, split, index),
            )

    classes = len(task.label_names) or getattr(encoded, "choices", None)
    return Predictions(split, task.metrics, tuple(rows[n] for n in sorted(rows)), classes)


@functools.lru_cache(maxsize=4)
def row_losses(per_example: PerExample) -> Any:
    """`step(frozen, trainable, batch)`, compiled: `Losses.rows` of a batch."""

    def step(frozen: Any, trainable: Any, batch: Any) -> dict[str, jax.Array]:
        return per_example(frozen, trainable, batch, None).rows()

    return jax.jit(step)


def scores_of(predictions: Predictions, primary: Primary) -> list[Score]:
    """Loss (nats a unit) and accuracy a unit, and every metric of the predictions with its values
    an example where it is their mean.
    """
    if not predictions.rows:
        raise ValueError(f"Cannot score no examples: the split {predictions.split!r} is empty.")
    everything, units = range(len(predictions.rows)), predictions.column("units")
    count = int(units.sum())
    loss, correct = predictions.column("loss"), predictions.column("correct")

    accuracy = None if np.isnan(correct).any() else correct.sum() / units.sum()
    # A row without a unit has loss 0, not NaN.
    each = [values / np.maximum(units, 1e-9) for values in (loss, correct)]
    found = loss_and_accuracy(primary, loss.sum() / units.sum(), accuracy, count, each)

    for name in predictions.metrics:
        if name == "accuracy":
            continue
        value, values = predictions.scored_by(name)(everything), predictions.each(name)
        higher = METRICS[name].higher_is_better
        found.append(Score(name, value, higher, "records", len(everything), per_example=values))
    return found


def loss_and_accuracy(
    primary: Primary,
    loss: float,
    accuracy: float | None,
    count: int,
    each: Sequence[Any] = (None, None),
) -> list[Score]:
    """Both as scores of `count` units, with their values an example in `each`; the loss alone where
    nothing is right or wrong.
    """
    found = [Score("loss", loss, False, primary.unit, count, per_example=each[0])]
    if accuracy is not None:
        share = primary.is_right_or_wrong
        found.append(Score("accuracy", accuracy, True, primary.unit, count, share, each[1]))
    return found


def metric_scores(predictions: Predictions, primary: Primary) -> dict[str, Score]:
    """The scores that sums over batches do not give, by name."""
    if set(predictions.metrics) <= {"accuracy"}:
        return {}
    found = scores_of(predictions, primary)
    return {one.name: one for one in found if one.name not in ("loss", "accuracy")}


def task_name(task: Task, split: str, index: int) -> str | None:
    """The task of an example of a mixture, None outside one."""
    names = getattr(task.records.get(split), "tasks", ())
    return names[index] if names else None


def example_id(encoded: Any, index: int) -> str:
    """16 hex digits of the sha256 of an example's tokens (of all its choices), or of its arrays."""
    if hasattr(encoded, "identity"):
        return hashlib.sha256(encoded.identity(index)).hexdigest()[:16]
    choices = getattr(encoded, "choices", 1)
    parts = encoded.tokens[index * choices : (index + 1) * choices]
    content = b"|".join(np.ascontiguousarray(part, np.int32).tobytes() for part in parts)
    return hashlib.sha256(content).hexdigest()[:16]
