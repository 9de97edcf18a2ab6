"""Scores with intervals, and whether two models differ on the same examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_jax.metrics.predictions import Predictions
from lora_jax.metrics.table import METRICS, perplexity
from lora_jax.statistics.bootstrap import (
    Difference,
    bootstrap,
    mean_interval,
    paired_bootstrap,
    paired_means,
)
from lora_jax.statistics.crossed import crossed_mean
from lora_jax.statistics.interval import Interval
from lora_jax.statistics.paired import McNemar, mcnemar


def intervals(
    predictions: Predictions, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Loss a unit (nats), accuracy a unit and every metric, each with its bootstrap interval over
    examples.

    Raises:
        ValueError: there is no example.
    """
    if not predictions.rows:
        raise ValueError("Cannot score no examples: the split is empty.")
    options: dict[str, Any] = dict(resamples=resamples, level=level, seed=seed)
    units = predictions.column("units")
    out = {
        name: mean_interval(predictions.column(column) / np.maximum(units, 1e-9), units, **options)
        for name, column in (("loss", "loss"), ("accuracy", "correct"))
    }
    for name in predictions.metrics:
        if name == "accuracy":
            continue
        each = predictions.each(name)
        if each is not None:
            out[name] = mean_interval(each, **options)
        else:
            out[name] = bootstrap(predictions.scored_by(name), len(predictions.rows), **options)
    return out


def intervals_over_seeds(
    runs: Sequence[Predictions], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """As `intervals`, of the mean of two or more runs that differ in their seed, over other seeds
    and other examples at once; of the scores that are means over examples.

    Raises:
        ValueError: there are fewer than two runs, or they were scored on different examples.
    """
    same = [aligned(runs[0], other)[1] for other in runs]
    counts = [len(one.rows) for one in runs]
    if len(set(counts)) > 1:
        raise ValueError(
            f"Runs at several seeds are scored on the same examples, got {counts} of them. Evaluate "
            "them on the same data and split."
        )
    units = same[0].column("units")
    tables = {
        name: np.stack([one.column(column) for one in same]) / np.maximum(units, 1e-9)
        for name, column in (("loss", "loss"), ("accuracy", "correct"))
    }
    found = {
        name: crossed_mean(table, units, resamples=resamples, seed=seed).interval(level)
        for name, table in tables.items()
        if not np.isnan(table).any()
    }
    for name in same[0].metrics:
        each = [None] if name == "accuracy" else [one.each(name) for one in same]
        if each[0] is not None:
            mean = crossed_mean(np.stack(each), resamples=resamples, seed=seed)
            found[name] = mean.interval(level)
    return found


def perplexities(predictions: Predictions, byte_count: int) -> dict[str, float]:
    """Perplexity a token and a byte of what was to be written; `byte_count` is the UTF-8 length of
    those texts.
    """
    loss, tokens = float(predictions.column("loss").sum()), float(predictions.column("units").sum())
    return {
        "perplexity_per_token": perplexity(loss, tokens),
        "perplexity_per_byte": perplexity(loss, byte_count),
    }


def aligned(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """The predictions of both models on the examples that both have, in the first's order.

    Raises:
        ValueError: the two share fewer than all examples of the smaller one: they were scored on
            different data.
    """
    places: dict[str, list[int]] = {}
    for n, row in enumerate(second.rows):
        places.setdefault(row.id, []).append(n)
    pairs = [(n, places[row.id].pop(0)) for n, row in enumerate(first.rows) if places.get(row.id)]
    if len(pairs) < min(len(first.rows), len(second.rows)) or not pairs:
        raise ValueError(
            f"A paired comparison needs the same examples, but of {len(first.rows)} and "
            f"{len(second.rows)} only {len(pairs)} are equal. Evaluate both runs on the same data, "
            "split, tokenizer and max_length."
        )
    ours, theirs = zip(*pairs)
    return first.at(ours), second.at(theirs)


def compare(
    first: Predictions,
    second: Predictions,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, float | int]]:
    """First less second, for loss and each metric: difference, interval, p (paired bootstrap);
    McNemar where answers are right or wrong.

    Raises:
        ValueError: the models were scored on different examples.
    """
    first, second = aligned(first, second)
    options: dict[str, Any] = dict(resamples=resamples, level=level, seed=seed)
    units = first.column("units")
    found: dict[str, Difference | McNemar] = {}
    for name, column in (("loss", "loss"), ("accuracy", "correct")):
        ours, theirs = (one.column(column) / np.maximum(units, 1e-9) for one in (first, second))
        found[name] = paired_means(ours, theirs, units, **options)

    for name in first.metrics:
        if name not in second.metrics or name == "accuracy":
            continue
        ours, theirs = first.each(name), second.each(name)
        if ours is not None:
            found[name] = paired_means(ours, theirs, **options)
        else:
            scores = first.scored_by(name), second.scored_by(name)
            found[name] = paired_bootstrap(*scores, len(first.rows), **options)

    # With other units, rows are right in part: there is no table of right and wrong.
    if (units == 1).all():
        right, too = (one.column("correct") > 0.5 for one in (first, second))
        found["mcnemar"] = mcnemar(right, too)
    return {name: one._asdict() for name, one in found.items()}


def verdict(name: str, difference: float, p: float, *, level: float = 0.95) -> str:
    """A sentence: which model is better by this score, or that the test cannot tell.

    >>> verdict("loss", -0.4, 0.001)
    'first better (loss -0.4, p 0.001)'
    """
    if math.isnan(difference) or p > 1 - level:
        return f"cannot tell ({name} {difference:+.4g}, p {p:.2g})"
    higher = METRICS[name].higher_is_better if name in METRICS else name != "loss"
    better = "first" if (difference > 0) == higher else "second"
    return f"{better} better ({name} {difference:+.4g}, p {p:.2g})"
