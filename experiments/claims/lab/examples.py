"""The loss of every single example, which paired comparisons are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from lora_jax.data import Batches, Encoded
from lora_jax.data.buckets import FILLER
from lora_jax.data.completions import EncodedCompletions
from lora_jax.data.token_packing import PackedBatches
from lora_jax.tasks.heads import HeadLosses
from lora_jax.tasks.language_loss import TokenLosses
from lora_jax.tasks.predictions import row_losses


def example_losses(
    model: nn.Module,
    encoded: Encoded | EncodedCompletions,
    frozen: Mapping[str, Any],
    trainable: Mapping[str, Any],
    *,
    buckets: Sequence[int] = (),
    batch_size: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """(mean loss in nats (examples,), weight (examples,)) in the order of `encoded`.

    Weights are the tokens of a completion, or 1 for a classifier: the weighted mean is what
    training minimises.
    """
    language = isinstance(encoded, EncodedCompletions)
    if language:
        batches: Any = PackedBatches(
            encoded, batch_size, shuffle=False, epochs=1, length=encoded.max_length, packed=False
        )
        indices = [np.array([row[0] for row in planned.rows]) for planned in batches.plan(0)]
    else:
        batches = Batches(encoded, tuple(buckets), batch_size, shuffle=False, epochs=1)
        indices = [planned.indices for planned in batches.plan(0)]
    step = row_losses(TokenLosses(model) if language else HeadLosses(model))
    losses, weights = np.zeros(len(encoded)), np.zeros(len(encoded))
    for index, chosen in enumerate(indices):
        rows = jax.device_get(step(frozen, dict(trainable), batches[index]))
        real = np.flatnonzero(chosen != FILLER)
        weights[chosen[real]] = rows["units"][real]
        losses[chosen[real]] = rows["loss"][real] / np.maximum(rows["units"][real], 1)
    return losses, weights
