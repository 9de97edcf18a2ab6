"""Loss and accuracy on a whole split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax

from lora_jax.tasks.losses import Sums
from lora_jax.training.compile import wait_on_cpu


def evaluate(
    step: Callable[..., Sums], frozen: Any, trainable: Any, batches: Iterable[Any]
) -> dict[str, float]:
    """Mean loss (nats), accuracy and number of examples over all batches; filler rows do not count,
    and there is no accuracy where nothing is right or wrong.

    Raises:
        ValueError: there is no real example in the batches.
    """
    totals: list[Sums] = []
    for batch in batches:
        wait_on_cpu(totals[-1:])
        totals.append(step(frozen, trainable, batch))
    if not totals:
        raise ValueError("Cannot evaluate on no batches: the split is empty.")
    # Fetched once: every fetch waits for the device.
    host = jax.device_get(totals)
    weight = sum(float(sums.weight) for sums in host)
    if not weight:
        raise ValueError("Cannot evaluate: every row of every batch is filler.")
    scores = {"loss": sum(float(sums.loss) for sums in host) / weight}
    if host[0].correct is not None:
        scores["accuracy"] = sum(float(sums.correct) for sums in host) / weight
    return scores | {"examples": int(weight)}
