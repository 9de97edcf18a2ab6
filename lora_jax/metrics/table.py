"""Scores of predictions against references, by name; libraries are imported when they are used."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from lora_jax.core.extras import needs
from lora_jax.core.tables import register

Kind = Literal["classes", "numbers", "texts"]


@dataclass(frozen=True)
class Metric:
    """A score of a set of examples.

    `kind` says what is compared: class ids, numbers, or texts (references then are lists of right
    texts). `whole` gives the score of the set, and with `by_classes` takes the number of `classes`
    of the task, which some of its examples may lack. Where the score is a mean over examples, `each`
    gives theirs, and `whole` is not needed.
    """

    name: str
    kind: Kind
    whole: Callable[..., float] | None = None
    each: Callable[[Sequence[Any], Sequence[Any]], Float[np.ndarray, " examples"]] | None = None
    higher_is_better: bool = True
    by_classes: bool = False

    def check(self, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        """Nothing, if there is a reference for every prediction and at least one, of texts at least
        one right text for each.

        Raises:
            ValueError: there is not.
        """
        if len(predictions) != len(references) or not len(predictions):
            raise ValueError(
                "A metric needs a reference for every prediction and at least one, got "
                f"{len(predictions)} predictions and {len(references)} references."
            )
        texts = references if self.kind == "texts" else ()
        if without := [n for n, right in enumerate(texts) if not len(right)]:
            raise ValueError(
                f"A text needs at least one reference, and {len(without)} of {len(references)} "
                f"have none, the first at position {without[0]}. Leave them out."
            )

    def score(self, predictions: Sequence[Any], references: Sequence[Any], **known: Any) -> float:
        """The score of a set of examples.

        Args:
            known: of the task, `classes` with `by_classes`.

        Raises:
            ValueError: as `check`.
        """
        self.check(predictions, references)
        if self.whole is None:
            return float(self.each(predictions, references).mean())
        return self.whole(predictions, references, **known)


class Primary(NamedTuple):
    """The metric that a task reports first, and what its losses count: 'records', 'words' or
    'tokens'.
    """

    name: str
    unit: str

    @property
    def is_right_or_wrong(self) -> bool:
        """Whether accuracy is a share of right answers that do not depend on each other. Tokens of
        a text do; a number within a half of its reference is no right answer.
        """
        numbers = self.name in METRICS and METRICS[self.name].kind == "numbers"
        return self.unit == "records" and not numbers


def library(name: str, *, extra: str = "tasks") -> ModuleType:
    """The module of that name, which `extra` installs.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    with needs(extra):
        return importlib.import_module(name)


def register_metric(metric: Metric) -> Metric:
    """Adds a metric to the table, for every function and setting that takes a metric's name.

    Raises:
        ValueError: the name is taken by another metric, or neither `whole` nor `each` is given.
    """
    if metric.whole is None and metric.each is None:
        raise ValueError(
            f"Metric {metric.name!r} needs `each` (a score an example) or `whole` (one of all)."
        )
    return register(METRICS, metric.name, metric, "metric")


def metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        ValueError: there is none; near names are listed.
    """
    from lora_jax.core.paths import nearest

    if name not in METRICS:
        raise ValueError(
            f"A metric is one of {', '.join(METRICS)}, got {name!r}. Nearest: "
            f"{nearest(name, METRICS, 1)[0]!r}."
        )
    return METRICS[name]


def accuracy_each(
    predictions: Sequence[Any], references: Sequence[Any]
) -> Float[np.ndarray, " examples"]:
    """1 where a prediction equals its reference, 0 elsewhere."""
    return np.array([p == r for p, r in zip(predictions, references, strict=True)], float)


def f1(
    predictions: Sequence[int], references: Sequence[int], *, classes: int | None = None
) -> float:
    """F1 of class 1 of two classes (as GLUE's MRPC and QQP; 0 where nothing is of class 1); with
    more classes, `macro_f1`.

    Args:
        classes: how many the task has: a set of examples, or a resample of it, may lack some. None:
            two, unless there is another label than 0 and 1.
    """
    if classes != 2 and (classes is not None or not {*predictions, *references} <= {0, 1}):
        return macro_f1(predictions, references)
    return float(_sklearn().f1_score(references, predictions, zero_division=0.0))


def macro_f1(predictions: Sequence[int], references: Sequence[int]) -> float:
    """The mean of the F1 of every class, however frequent. A class that is neither right nor
    predicted anywhere has no F1 and does not count, as in scikit-learn.
    """
    return float(_sklearn().f1_score(references, predictions, average="macro", zero_division=0.0))


def matthews(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Matthews correlation, -1 to 1 (GLUE's CoLA); 0 where one of the two is constant, as in
    scikit-learn.
    """
    return float(_sklearn().matthews_corrcoef(references, predictions))


def pearson(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Pearson correlation; NaN where one of the two is constant."""
    return _correlation(np.asarray(predictions, float), np.asarray(references, float))


def spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Spearman rank correlation, ties at their mean rank; NaN where one of the two is constant."""
    from scipy.stats import rankdata

    return _correlation(rankdata(predictions), rankdata(references))


def token_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """F1 of entities over all texts (CoNLL-2003's conlleval): one is right if its type, start and
    end are.

    Predictions and references are BIO labels of words, such as B-PER, I-PER and O, of equal
    lengths. seqeval counts by the same rule; it would be one more package for these lines.
    """
    found, wanted, right = 0, 0, 0
    for predicted, gold in zip(predictions, references, strict=True):
        if len(predicted) != len(gold):
            raise ValueError(
                f"Entity labels need one for each of {len(gold)} words, got {len(predicted)}."
            )
        ours, theirs = entities(predicted), entities(gold)
        found, wanted, right = found + len(ours), wanted + len(theirs), right + len(ours & theirs)
    return 2 * right / (found + wanted) if found + wanted else 0.0


def entities(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, start, end) of each entity in BIO labels; an I- that continues nothing begins an
    entity, as in conlleval.
    """
    out, start, kind = set(), 0, ""
    for position, label in enumerate([*labels, "O"]):
        prefix, _, name = label.partition("-")
        goes_on = prefix == "I" and name == kind
        if kind and not goes_on:
            out.add((kind, start, position))
            kind = ""
        if prefix in ("B", "I") and not goes_on:
            start, kind = position, name
    return out


def perplexity(loss: float, units: float | int) -> float:
    """exp of the loss (nats, a sum) over the units it is spread on: tokens, or bytes of UTF-8,
    which other tokenizers share.

    >>> round(perplexity(2 * math.log(8.0), 2), 6)
    8.0
    """
    if units <= 0:
        raise ValueError(f"A perplexity needs tokens or bytes to be spread on, got {units}.")
    return math.exp(loss / units)


def _sklearn() -> ModuleType:
    return library("sklearn.metrics")


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    # Asked of the numbers themselves: a constant's mean can differ from it by rounding.
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    # Each by its largest, so that no square is infinite or 0.
    a, b = a / np.abs(a).max(), b / np.abs(b).max()
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def _text(name: str) -> Callable[..., Any]:
    """A function of text_metrics.py, imported at the first call."""
    where = "lora_jax.metrics.text_metrics"
    return lambda *texts: getattr(importlib.import_module(where), name)(*texts)


METRICS: dict[str, Metric] = {
    one.name: one
    for one in (
        Metric("accuracy", "classes", each=accuracy_each),
        Metric("f1", "classes", f1, by_classes=True),
        Metric("macro_f1", "classes", macro_f1),
        Metric("matthews", "classes", matthews),
        Metric("pearson", "numbers", pearson),
        Metric("spearman", "numbers", spearman),
        Metric("token_f1", "classes", token_f1),
        Metric("exact_match", "texts", each=_text("exact_match_each")),
        Metric("squad_f1", "texts", each=_text("squad_f1_each")),
        Metric("bleu", "texts", _text("bleu")),
        Metric("lowercase_bleu", "texts", _text("lowercase_bleu")),
        Metric("nist", "texts", _text("nist")),
        Metric("chrf", "texts", _text("chrf")),
        Metric("ter", "texts", _text("ter"), higher_is_better=False),
        Metric("rouge_1", "texts", each=_text("rouge_1_each")),
        Metric("rouge_2", "texts", each=_text("rouge_2_each")),
        Metric("rouge_l", "texts", each=_text("rouge_l_each")),
        Metric("coco_rouge_l", "texts", each=_text("coco_rouge_l_each")),
        Metric("cider", "texts", _text("cider")),
        Metric("meteor", "texts", _text("meteor")),
    )
}
