"""What a model says about each example of a split: kept, so that scores get intervals and two
models can be compared.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lora_jax.adapters.apply import apply
from lora_jax.data.buckets import FILLER
from lora_jax.data.heads import EncodedSpans
from lora_jax.data.pairs import EncodedPairs, PairBatches
from lora_jax.data.token_packing import PackedBatches
from lora_jax.metrics.score import Score
from lora_jax.metrics.table import Metric, metric
from lora_jax.models.decoder import Decoder
from lora_jax.models.t5 import T5
from lora_jax.tasks.continuations import score_labels
from lora_jax.tasks.kinds import batches_of
from lora_jax.tasks.language_loss import hidden_inputs
from lora_jax.tasks.losses import choice_logits, span_logits

_MAX_ANSWER = 30  # tokens of an extracted answer at most, as BERT's SQuAD script has it


@dataclass(frozen=True)
class Prediction:
    """One example. `loss` is a sum in nats over `units` (1, or the tokens that count), `correct`
    how many of these were right.

    `id` is of the example's tokens: equal ids are equal examples. `predicted` and `references` are
    class names, numbers, tags or texts (references of texts: a list), None where only the loss was
    computed.
    """

    id: str
    loss: float
    units: float
    correct: float
    predicted: Any = None
    references: Any = None
    task: str | None = None  # in a mixture


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model on a split, and the names of the metrics that score them."""

    split: str
    metrics: tuple[str, ...]
    rows: tuple[Prediction, ...]

    def by_task(self) -> dict[str, Predictions]:
        """The predictions of each task of a mixture; nothing outside one."""
        names = dict.fromkeys(row.task for row in self.rows if row.task is not None)
        return {
            name: Predictions(
                self.split, self.metrics, tuple(row for row in self.rows if row.task == name)
            )
            for name in names
        }

    def column(self, name: str) -> Any:
        """A field of all rows; numbers as an array."""
        values = [getattr(row, name) for row in self.rows]
        return np.array(values, float) if name in ("loss", "units", "correct") else values

    def scored_by(self, name: str) -> Callable[[Any], float]:
        """The score of the examples at given positions, by a metric's name, or by loss or accuracy
        (means over units).
        """
        if name in ("loss", "correct"):
            total, units = self.column(name), self.column("units")
            return lambda rows: float(total[rows].sum() / units[rows].sum())
        return functools.partial(
            _score, metric(name), self.column("predicted"), self.column("references")
        )


def _score(by: Metric, predicted: Sequence[Any], references: Sequence[Any], rows: Any) -> float:
    return by.score([predicted[row] for row in rows], [references[row] for row in rows])


def predict(
    task: Any,
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
    encoded = split_of_task(task, split)
    decoder = isinstance(task.model, Decoder | T5)
    if decoder:
        options: dict[str, Any] = dict(shuffle=False, epochs=1, packed=False)
        pairs = isinstance(encoded, EncodedPairs)
        batches: Any = (
            PairBatches(encoded, batch_size, **options)
            if pairs
            else PackedBatches(encoded, batch_size, length=encoded.max_length, **options)
        )
        members = [[row[0] for row in planned.rows] for planned in batches.plan(0)]
    else:
        batches = batches_of(encoded, task.buckets, batch_size, shuffle=False, epochs=1)
        members = [
            [int(index) for index in planned.indices if index != FILLER]
            for planned in batches.plan(0)
        ]
    step = functools.partial(_decoder_step, task.model) if decoder else _step(task.model)
    limit = len(encoded) if examples is None else examples
    rows: dict[int, Prediction] = {}
    for number, indices in enumerate(members):
        if all(index >= limit for index in indices):
            continue
        out = jax.device_get(step(frozen, trainable, batches[number]))
        for place, index in enumerate(indices):
            loss, units, correct = (
                float(out[name][place]) for name in ("loss", "units", "correct")
            )
            said = (
                None
                if decoder
                else _said(task, split, index, {name: value[place] for name, value in out.items()})
            )
            predicted, references = (None, None) if said is None else said
            rows[index] = Prediction(
                example_id(encoded, index),
                loss,
                units,
                correct,
                predicted,
                references,
                task_name(task, split, index),
            )
    names = () if decoder or task.recipe is None else task.recipe.metrics
    return Predictions(
        split,
        names or (() if decoder else ("accuracy",)),
        tuple(rows[n] for n in sorted(rows) if n < limit),
    )


def metric_scores(
    task: Any, frozen: Mapping[str, Any], trainable: Mapping[str, Any], *, batch_size: int = 64
) -> dict[str, Score]:
    """Every metric of an encoder's recipe on its test split, by name; nothing without a recipe, or
    of a decoder. Accuracy a unit is left to the sums of an evaluation.
    """
    if task.recipe is None or isinstance(task.model, Decoder | T5):
        return {}
    predictions = predict(task, frozen, trainable, "test", batch_size=batch_size)
    everything = range(len(predictions.rows))
    return {
        name: Score(
            name,
            predictions.scored_by(name)(everything),
            metric(name).higher_is_better,
            count=len(predictions.rows),
        )
        for name in predictions.metrics
        if name != "accuracy"
    }


def split_of_task(task: Any, split: str) -> Any:
    """The encoded split.

    Raises:
        ValueError: there is no such split.
    """
    if split not in task.splits:
        raise ValueError(f"A split needs to be one of {', '.join(task.splits)}, got {split!r}.")
    return task.splits[split]


def task_name(task: Any, split: str, index: int) -> str | None:
    """The task of an example of a mixture, None outside one."""
    names = getattr(task.records.get(split), "tasks", ())
    return names[index] if names else None


def example_id(encoded: Any, index: int) -> str:
    """16 hex digits of the sha256 of an example's tokens (of all its choices)."""
    choices = getattr(encoded, "choices", 1)
    parts = encoded.tokens[index * choices : (index + 1) * choices]
    return hashlib.sha256(
        b"|".join(np.ascontiguousarray(part, np.int32).tobytes() for part in parts)
    ).hexdigest()[:16]


def save_predictions(path: Path, predictions: Predictions) -> Path:
    """Writes a line of JSON an example, after one that names split and metrics."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"split": predictions.split, "metrics": predictions.metrics})
    path.write_text(
        "\n".join(
            [head, *(json.dumps(asdict(row), ensure_ascii=False) for row in predictions.rows)]
        )
        + "\n",
        encoding="utf-8",
    )
    return path


def load_predictions(path: Path) -> Predictions:
    """The predictions that `save_predictions` wrote.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no predictions at {path}. Make them with: lora-jax evaluate RUN."
        )
    try:
        head, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        return Predictions(
            head["split"], tuple(head["metrics"]), tuple(Prediction(**row) for row in rows)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no file of predictions ({error}). Make it anew with: lora-jax evaluate RUN."
        ) from None


def _decoder_step(
    model: Decoder | T5, frozen: Any, trainable: Any, batch: Any
) -> dict[str, np.ndarray]:
    """Sums of loss, counted tokens and right ones of every row."""
    scores = score_labels(
        model, frozen, trainable, hidden_inputs(batch), batch["labels"], batch["loss_weight"] > 0
    )
    return {"loss": -scores.log_probability, "units": scores.tokens, "correct": scores.likeliest}


@functools.lru_cache(maxsize=4)
def _step(model: Any) -> Any:
    return jax.jit(functools.partial(_encoder_step, model))


def _encoder_step(model: Any, frozen: Any, trainable: Any, batch: Any) -> dict[str, jax.Array]:
    """Sums of loss, units and right ones of every example, and what `_said` reads: scores, or the
    likeliest tags or span.
    """
    head, labels = getattr(model.config, "head", "class"), batch["labels"]
    ones = jnp.ones_like(batch["weight"])
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    if head == "choice" or head == "span":
        logits = (choice_logits if head == "choice" else span_logits)(
            model, frozen, trainable, batch, None
        )
    else:
        logits = apply(
            model, frozen, trainable, batch["tokens"], batch["mask"], batch["types"]
        ).astype(jnp.float32)
    if head == "score":
        gap = logits[:, 0] - labels
        return {
            "loss": 0.5 * gap * gap,
            "units": ones,
            "correct": (jnp.abs(gap) < 0.5) * ones,
            "said": logits[:, 0],
        }
    if head == "token":
        there = labels >= 0
        losses = cross_entropy(logits, jnp.maximum(labels, 0)) * there
        right = (logits.argmax(-1) == labels) & there
        return {
            "loss": losses.sum(1),
            "units": there.sum(1) * ones,
            "correct": right.sum(1) * ones,
            "said": logits.argmax(-1),
        }
    if head == "span":
        there = (labels >= 0).all(-1)
        losses = cross_entropy(logits, jnp.maximum(labels, 0)).mean(-1) * there
        span = best_span(logits)
        return {
            "loss": losses,
            "units": ones,
            "correct": (span == labels).all(-1) * ones,
            "said": span,
        }
    return {
        "loss": cross_entropy(logits, labels),
        "units": ones,
        "correct": (logits.argmax(-1) == labels) * ones,
        "said": logits.argmax(-1),
    }


def best_span(logits: jax.Array, longest: int = _MAX_ANSWER) -> jax.Array:
    """(batch, 2): the begin and end, at most `longest` tokens apart, whose logits (batch, 2, time)
    add up to most.
    """
    time = logits.shape[-1]
    begin, end = jnp.arange(time)[:, None], jnp.arange(time)[None, :]
    legal = (end >= begin) & (end < begin + longest)
    best = (
        jnp.where(legal, logits[:, 0, :, None] + logits[:, 1, None, :], -jnp.inf)
        .reshape(len(logits), -1)
        .argmax(-1)
    )
    return jnp.stack([best // time, best % time], -1)


def _said(task: Any, split: str, index: int, out: Mapping[str, Any]) -> tuple[Any, Any]:
    """(predicted, references) of an encoder's example, as its metrics compare them."""
    head, encoded = getattr(task.model.config, "head", "class"), task.splits[split]
    if head == "score":
        return float(out["said"]), float(encoded.labels[index])
    if head == "token":
        labels = encoded.labels[index]
        names = lambda ids: [task.label_names[int(i)] for i in ids]
        return names(out["said"][: len(labels)][labels >= 0]), names(labels[labels >= 0])
    if head == "span" and isinstance(encoded, EncodedSpans):
        values, places = task.records[split][index].values, encoded.offsets[index]
        first, last = (int(n) for n in out["said"])
        inside = last < len(places) and places[first, 0] >= 0 and places[last, 1] >= 0
        answer = values["context"][places[first, 0] : places[last, 1]] if inside else ""
        return answer, [right["text"] for right in values["answers"]]
    return int(out["said"]), int(encoded.labels[index])
