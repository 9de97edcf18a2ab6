"""What training on one domain costs in another: held-out loss with the adapter and without it, on
the same texts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lora_jax.metrics.comparison import compare, intervals
from lora_jax.tasks.predictions import predict


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
