"""Losses as sums over a batch and the weight they sum over, so that micro-batches and filler rows
add up exactly.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from lora_jax.adapters.apply import apply
from lora_jax.core.trainable import Trainables


class Sums(struct.PyTreeNode):
    """Sums over the examples of a batch. `weight` is the number of real examples; divide by it for
    means. `correct` is None where nothing is right or wrong.
    """

    loss: Float[Array, ""]
    correct: Float[Array, ""] | None
    weight: Float[Array, ""]


def classification_sums(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    weight: Float[Array, " batch"],
) -> Sums:
    """Cross-entropy in nats, computed in float32, and correct answers, summed with the examples'
    weights.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    return Sums(loss=(losses * weight).sum(), correct=(correct * weight).sum(), weight=weight.sum())


def classifier_loss(model: nn.Module) -> Any:
    """The loss function of a sentence classifier: `(frozen, trainable, batch, key) -> (sum of
    losses, Sums)`.
    """

    def loss(
        frozen: Any, trainable: Trainables, batch: dict[str, Array], key: jax.Array | None
    ) -> tuple[Array, Sums]:
        logits = apply(
            model, frozen, trainable, batch["tokens"], batch["mask"], batch["types"], key=key
        )
        sums = classification_sums(logits, batch["labels"], batch["weight"])
        return sums.loss, sums

    return loss


def score_loss(model: nn.Module) -> Any:
    """The loss function of a regression: half the squared error; "correct" is within half a unit of
    the label.
    """

    def loss(
        frozen: Any, trainable: Trainables, batch: dict[str, Array], key: jax.Array | None
    ) -> tuple[Array, Sums]:
        scores = apply(
            model, frozen, trainable, batch["tokens"], batch["mask"], batch["types"], key=key
        )[:, 0].astype(jnp.float32)
        gap, weight = scores - batch["labels"], batch["weight"]
        total = (0.5 * gap * gap * weight).sum()
        return total, Sums(
            loss=total, correct=((jnp.abs(gap) < 0.5) * weight).sum(), weight=weight.sum()
        )

    return loss


def token_loss(model: nn.Module) -> Any:
    """The loss function of token classification, summed over tokens that have a label (not -1)."""

    def loss(
        frozen: Any, trainable: Trainables, batch: dict[str, Array], key: jax.Array | None
    ) -> tuple[Array, Sums]:
        logits = apply(
            model, frozen, trainable, batch["tokens"], batch["mask"], batch["types"], key=key
        )
        labels = batch["labels"].reshape(-1)
        weight = (batch["weight"][:, None] * (batch["labels"] >= 0)).reshape(-1)
        sums = classification_sums(
            logits.reshape(-1, logits.shape[-1]), jnp.maximum(labels, 0), weight
        )
        return sums.loss, sums

    return loss


def span_loss(model: nn.Module) -> Any:
    """The loss function of extractive answers: the mean of the losses of begin and end; correct if
    both are.

    An answer that is not in the window (labels -1) adds no loss and is never correct, but counts.
    """

    def loss(
        frozen: Any, trainable: Trainables, batch: dict[str, Array], key: jax.Array | None
    ) -> tuple[Array, Sums]:
        logits = span_logits(model, frozen, trainable, batch, key)
        labels, weight = batch["labels"], batch["weight"]
        there = weight * (labels >= 0).all(-1)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.maximum(labels, 0)
        ).mean(-1)
        right = (logits.argmax(-1) == labels).all(-1)
        total = (losses * there).sum()
        return total, Sums(loss=total, correct=(right * there).sum(), weight=weight.sum())

    return loss


def span_logits(
    model: nn.Module,
    frozen: Any,
    trainable: Trainables,
    batch: dict[str, Array],
    key: jax.Array | None,
) -> Float[Array, "batch 2 time"]:
    """Logits of every token as begin and as end of the answer; only `allowed` tokens can be."""
    logits = apply(
        model, frozen, trainable, batch["tokens"], batch["mask"], batch["types"], key=key
    ).astype(jnp.float32)
    return jnp.where(
        batch["allowed"][:, None, :], jnp.swapaxes(logits, 1, 2), jnp.finfo(jnp.float32).min / 2
    )


def choice_loss(model: nn.Module) -> Any:
    """The loss function of multiple choice: cross-entropy over one number a choice."""

    def loss(
        frozen: Any, trainable: Trainables, batch: dict[str, Array], key: jax.Array | None
    ) -> tuple[Array, Sums]:
        sums = classification_sums(
            choice_logits(model, frozen, trainable, batch, key), batch["labels"], batch["weight"]
        )
        return sums.loss, sums

    return loss


def choice_logits(
    model: nn.Module,
    frozen: Any,
    trainable: Trainables,
    batch: dict[str, Array],
    key: jax.Array | None,
) -> Float[Array, "batch choices"]:
    """One number a choice; the texts of all choices go through the model together."""
    flat = [batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "mask", "types")]
    return apply(model, frozen, trainable, *flat, key=key)[:, 0].reshape(batch["tokens"].shape[:2])


ENCODER_LOSSES = {
    "class": classifier_loss,
    "score": score_loss,
    "token": token_loss,
    "span": span_loss,
    "choice": choice_loss,
}
