"""Adapters across domains: every one on every domain's held-out data, whether each is best at home,
and what training on one domain costs in another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lora_jax.metrics.comparison import compare, intervals
from lora_jax.metrics.predictions import Predictions
from lora_jax.tasks.predictions import predict

BASE = "base"


def adapter_matrix(
    runs: Mapping[str, Any],
    *,
    split: str = "test",
    batch_size: int = 8,
    examples: int | None = None,
) -> dict[str, dict[str, Predictions]]:
    """`{domain: {adapter: predictions}}`: the base and every run's adapter on every run's split,
    one frozen base for all.

    Raises:
        ValueError: the runs were not trained on one base, stored in one way.
    """
    first = next(iter(runs.values()))
    for name, run in runs.items():
        if run.start:
            raise ValueError(
                f"One base serves adapters that were trained on it, but {name!r} started from "
                f"factors that make up for its base's rounding (lora.init={run.config.lora.init!r}). "
                "Train it with another initialiser."
            )
        if (run.task.base, run.config.quant, run.config.model) != (
            first.task.base,
            first.config.quant,
            first.config.model,
        ):
            raise ValueError(
                f"One base serves adapters that were trained on it, but {name!r} was trained on "
                f"{run.task.base} in format {run.config.quant.format} and {next(iter(runs))!r} on "
                f"{first.task.base} in format {first.config.quant.format}. Train them with the "
                "same model and quant settings."
            )

    adapters = {BASE: first.without_adapter()} | {name: run.trainable for name, run in runs.items()}
    return {
        domain: {
            name: predict(
                run.task, first.frozen, trainable, split, batch_size=batch_size, examples=examples
            )
            for name, trainable in adapters.items()
        }
        for domain, run in runs.items()
    }


def home_wins(
    matrix: Mapping[str, Mapping[str, Predictions]],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[dict]:
    """A row a domain and adapter: loss a token with interval, and for others than the domain's own
    the difference to it with p.

    `wins` is whether the domain's own adapter is better by a difference whose interval leaves out
    0.
    """
    options: dict[str, Any] = dict(resamples=resamples, level=level, seed=seed)
    rows = []
    for domain, scored in matrix.items():
        for name, predictions in scored.items():
            loss = intervals(predictions, **options)["loss"]
            row = {
                "domain": domain,
                "adapter": name,
                "examples": len(predictions.rows),
                **loss._asdict(),
            }
            if name != domain:
                test = compare(scored[domain], predictions, **options)["loss"]
                row |= {"difference": test["value"], "p": test["p"], "wins": test["high"] < 0}
            rows.append(row)
    return rows


def measure_forgetting(
    run: Any,
    data: str,
    *,
    examples: int | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict:
    """Loss a token (nats) on the completions of `data`, a file or known name, before and after
    training, and their difference.

    A difference above 0 is forgetting (Biderman et al. 2024, LoRA Learns Less and Forgets Less,
    measure it so on the source domain).

    Raises:
        ValueError: the run is no language model's, or a domain's texts do not fit its window.
    """
    task = run.task
    if task.generator is None:
        raise ValueError(
            "Forgetting is measured by a language model's loss on other texts; this run is an "
            "encoder with a head, which has no such loss. Leave --forgetting out."
        )

    encoded, records = run.encode_other(data)
    other = replace(task, splits={"other": encoded}, records={"other": records}, recipe=None)
    size = run.config.train.eval_batch_size
    after = predict(other, run.frozen, run.trainable, "other", batch_size=size, examples=examples)
    before = predict(
        other, run.frozen, run.without_adapter(), "other", batch_size=size, examples=examples
    )

    options: dict[str, Any] = dict(resamples=resamples, level=level, seed=seed)
    return {
        "data": data,
        "examples": len(after.rows),
        "before": intervals(before, **options)["loss"]._asdict(),
        "after": intervals(after, **options)["loss"]._asdict(),
        "difference": compare(after, before, **options)["loss"],
    }
