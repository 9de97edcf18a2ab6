"""Loss and accuracy on a whole split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from lora_jax.tasks.losses import Sums
from lora_jax.training.compile import wait_on_cpu


def evaluate(
    step: Callable[..., Sums], frozen: Any, trainable: Any, batches: Iterable[Any]
) -> dict[str, float]:
    """Mean loss (nats), accuracy and number of examples over all batches; filler rows do not count.

    Raises:
        ValueError: there is no real example in the batches.
    """
    return means(results_of(step, frozen, trainable, batches))


def results_of(
    step: Callable[..., Any], frozen: Any, trainable: Any, batches: Iterable[Any]
) -> list[Any]:
    """What the step gives of each batch, on the host."""
    found: list[Any] = []
    for batch in batches:
        wait_on_cpu(found[-1:])
        found.append(step(frozen, trainable, batch))
    # Fetched once: every fetch waits for the device.
    return jax.device_get(found)


def means(sums: Sequence[Sums]) -> dict[str, float]:
    """Mean loss, accuracy and number of examples from the sums of batches.

    Raises:
        ValueError: there is no real example in them.
    """
    if not sums:
        raise ValueError("Cannot evaluate on no batches: the split is empty.")
    weight = sum(float(one.weight) for one in sums)
    if not weight:
        raise ValueError("Cannot evaluate: every row of every batch is filler.")
    found = {"loss": sum(float(one.loss) for one in sums) / weight}
    if sums[0].correct is not None:
        found["accuracy"] = sum(float(one.correct) for one in sums) / weight
    return found | {"examples": int(weight)}
