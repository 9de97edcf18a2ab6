"""The loss of every single example, which paired comparisons are made of."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from lora_jax.adapters.apply import apply
from lora_jax.data import Batches, Encoded
from lora_jax.data.buckets import FILLER
from lora_jax.data.completions import EncodedCompletions
from lora_jax.data.token_packing import PackedBatches


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
    step = _language if language else _classifier
    losses, weights = np.zeros(len(encoded)), np.zeros(len(encoded))
    for index, chosen in enumerate(indices):
        total, weight = jax.device_get(step(model, frozen, dict(trainable), batches[index]))
        real = np.flatnonzero(chosen != FILLER)
        losses[chosen[real]] = total[real] / np.maximum(weight[real], 1)
        weights[chosen[real]] = weight[real]
    return losses, weights


@functools.partial(jax.jit, static_argnums=0)
def _language(
    model: nn.Module, frozen: Any, trainable: Any, batch: Any
) -> tuple[jax.Array, jax.Array]:
    logits = apply(model, frozen, trainable, batch["tokens"], batch["segments"])
    each = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), batch["labels"]
    )
    return (each * batch["loss_weight"]).sum(1), batch["loss_weight"].sum(1)


@functools.partial(jax.jit, static_argnums=0)
def _classifier(
    model: nn.Module, frozen: Any, trainable: Any, batch: Any
) -> tuple[jax.Array, jax.Array]:
    logits = apply(model, frozen, trainable, batch["tokens"], batch["mask"], batch["types"])
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), batch["labels"]
    ), batch["weight"]
