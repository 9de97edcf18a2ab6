"""What a model says of each example, kept: scores get intervals, and models can be compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lora_jax.core.json_files import parse_json
from lora_jax.core.replacing import replacing
from lora_jax.metrics.table import metric

_HEAD = ("split", "metrics", "classes")  # what the first line of a file says of all


@dataclass(frozen=True)
class Prediction:
    """What a model says of one example.

    `loss` is a sum in nats over `units` (1, or the tokens that count), `correct` how many of these
    were right.
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
    """The predictions of a model on a split, and the names of the metrics that score them.

    `classes` is how many the task has, of which some may not occur in these rows; None where it has
    none, or where nobody said.
    """

    split: str
    metrics: tuple[str, ...]
    rows: tuple[Prediction, ...]
    classes: int | None = None

    def by_task(self) -> dict[str, Predictions]:
        """The predictions of each task of a mixture; nothing outside one."""
        tasks = [row.task for row in self.rows]
        return {
            name: self.at(place for place, task in enumerate(tasks) if task == name)
            for name in dict.fromkeys(tasks)
            if name is not None
        }

    def at(self, places: Iterable[int]) -> Predictions:
        """The predictions at these positions, in their order."""
        return replace(self, rows=tuple(self.rows[place] for place in places))

    def column(self, name: str) -> Any:
        """A field of all rows; numbers as an array."""
        values = [getattr(row, name) for row in self.rows]
        return np.array(values, float) if name in ("loss", "units", "correct") else values

    def scored_by(self, name: str) -> Callable[[Any], float]:
        """The score of the examples at given positions, by a metric's name, or by loss or correct
        (means over units).
        """
        if name in ("loss", "correct"):
            total, units = self.column(name), self.column("units")
            return lambda rows: float(total[rows].sum() / units[rows].sum())
        score, known = metric(name).score, {}
        predicted, references = self.column("predicted"), self.column("references")
        if metric(name).by_classes:
            # By all rows where nobody said: some resample of them may lack a class.
            known["classes"] = self.classes or 1 + max(1, *predicted, *references)
        return lambda rows: score(
            [predicted[n] for n in rows], [references[n] for n in rows], **known
        )

    def each(self, name: str) -> Float[np.ndarray, " rows"] | None:
        """The metric's score of each example; None where that of the set is not their mean."""
        one, compared = metric(name), (self.column("predicted"), self.column("references"))
        if one.each is None:
            return None
        one.check(*compared)
        return one.each(*compared)


def save_predictions(path: Path, predictions: Predictions) -> Path:
    """Writes a line of JSON an example, after one that names split and metrics; what was there is
    kept if the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({name: getattr(predictions, name) for name in _HEAD})
    rows = (json.dumps(asdict(row), ensure_ascii=False) for row in predictions.rows)
    with replacing(path) as new:
        new.write_text("".join(f"{line}\n" for line in (head, *rows)), encoding="utf-8")
    return path


def load_predictions(path: Path) -> Predictions:
    """The predictions that `save_predictions` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no predictions at {path}. Make them with: lora-jax evaluate RUN."
        )
    try:
        # Not splitlines: a text may hold U+2028, which JSON does not escape.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        head, *rows = (parse_json(line, path) for line in lines)
        found = tuple(Prediction(**row) for row in rows)
        return Predictions(head["split"], tuple(head["metrics"]), found, head.get("classes"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no file of predictions ({error}). Make it anew with: lora-jax evaluate RUN."
        ) from None
