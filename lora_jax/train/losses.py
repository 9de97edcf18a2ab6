"""Losses as sums over a batch and the weight they sum over, so that micro-batches and filler rows add up exactly."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from lora_jax.adapt.apply import Lora, apply


class Sums(struct.PyTreeNode):
    """Sums over the examples of a batch. `weight` is the number of real examples; divide by it for means."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    weight: Float[Array, ""]


def classification_sums(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], weight: Float[Array, " batch"]) -> Sums:
    """Cross-entropy in nats, computed in float32, and correct answers, summed with the examples' weights."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    return Sums(loss=(losses * weight).sum(), correct=(correct * weight).sum(), weight=weight.sum())


def classifier_loss(model: nn.Module) -> Any:
    """The loss function of a sentence classifier: `(lora, frozen, batch, key) -> (sum of losses, Sums)`."""

    def loss(lora: Lora, frozen: Any, batch: dict[str, Array], key: jax.Array | None) -> tuple[Array, Sums]:
        logits = apply(model, frozen, lora, batch["tokens"], batch["mask"], batch["types"], key=key)
        sums = classification_sums(logits, batch["labels"], batch["weight"])
        return sums.loss, sums

    return loss
