"""The losses of encoders, one a head, and what each head says of a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from lora_jax.adapters.apply import apply
from lora_jax.core.paths import key_for
from lora_jax.core.trainable import Trainables
from lora_jax.tasks.losses import Losses, Summed, classification

_MAX_ANSWER = 30  # tokens of an extracted answer at most, as BERT's SQuAD script has it


@dataclass(frozen=True)
class HeadLosses:
    """The loss of an encoder with a head, row by row: see `PerExample`.

    Batches have `tokens`, `mask`, `types`, `labels` and `weight`; those of spans `allowed` as well,
    those of choices an axis of choices before time.
    """

    model: nn.Module
    head: str = "class"
    smoothing: float = 0.0  # of labels, in training
    by_class: tuple[float, ...] | None = None  # what a label counts, in training

    def __call__(
        self, frozen: Any, trainable: Trainables, batch: Any, key: jax.Array | None = None
    ) -> Losses:
        """The losses of a batch."""
        inputs = tuple(batch[name] for name in ("tokens", "mask", "types"))
        if self.head == "choice":
            # The texts of all choices go through the model together.
            inputs = tuple(part.reshape(-1, part.shape[-1]) for part in inputs)
        # The adapters draw by the paths of their weights; the model's own dropout has no path.
        rngs = {} if key is None else {"rngs": {"dropout": key_for(key, "")}}
        logits = apply(self.model, frozen, trainable, *inputs, key=key, **rngs)
        training: dict[str, Any] = {}
        if key is not None:
            training |= {"smoothing": self.smoothing} if self.smoothing else {}
            training |= {"by_class": self.by_class} if self.by_class else {}
        return HEADS[self.head](logits.astype(jnp.float32), batch, **training)


def classifier_loss(model: nn.Module) -> Summed:
    """The loss of a sentence classifier as training steps take it: `(frozen, trainable, batch, key)
    -> (sum of losses, Sums)`.
    """
    return Summed(HeadLosses(model))


def _class(
    logits: Float[Array, "batch classes"],
    batch: Any,
    smoothing: float = 0.0,
    by_class: tuple[float, ...] | None = None,
) -> Losses:
    labels = batch["labels"]
    return classification(logits, labels, batch["weight"] * _counts(labels, by_class), smoothing)


def _counts(labels: Int[Array, ...], by_class: tuple[float, ...] | None) -> Any:
    """What each label counts, by its class; 1 if all count alike."""
    return 1.0 if by_class is None else jnp.asarray(by_class, jnp.float32)[jnp.maximum(labels, 0)]


def _score(logits: Float[Array, "batch 1"], batch: Any) -> Losses:
    """Half the squared error; right is what is within half a unit of the label."""
    scores = logits[:, 0]
    gap = scores - batch["labels"]
    return Losses.of(0.5 * gap * gap, jnp.abs(gap) < 0.5, batch["weight"], scores)


def _token(
    logits: Float[Array, "batch time classes"],
    batch: Any,
    smoothing: float = 0.0,
    by_class: tuple[float, ...] | None = None,
) -> Losses:
    """Over tokens that have a label (not -1)."""
    labels = batch["labels"]
    weight = batch["weight"][:, None] * (labels >= 0) * _counts(labels, by_class)
    return classification(logits, labels, weight, smoothing)


def _span(logits: Float[Array, "batch time 2"], batch: Any) -> Losses:
    """The mean of the losses of begin and end, of which only `allowed` tokens can be one.

    An answer that is not in the window (labels -1) adds no loss and is never right, but counts.
    """
    lowest = jnp.finfo(jnp.float32).min / 2
    places = jnp.where(batch["allowed"][:, None, :], jnp.swapaxes(logits, 1, 2), lowest)
    labels = batch["labels"]
    losses = optax.softmax_cross_entropy_with_integer_labels(places, jnp.maximum(labels, 0))
    there, answer = (labels >= 0).all(-1), best_span(places)
    right = (answer == labels).all(-1)
    return Losses.of(losses.mean(-1) * there, right & there, batch["weight"], answer)


def _choice(logits: Float[Array, "texts 1"], batch: Any, smoothing: float = 0.0) -> Losses:
    """Cross-entropy over one number a choice."""
    return _class(logits[:, 0].reshape(batch["tokens"].shape[:2]), batch, smoothing)


HEADS: dict[str, Callable[..., Losses]] = {
    "class": _class,
    "score": _score,
    "token": _token,
    "span": _span,
    "choice": _choice,
}


def best_span(
    logits: Float[Array, "batch 2 time"], longest: int = _MAX_ANSWER
) -> Int[Array, "batch 2"]:
    """The begin and end, at most `longest` tokens apart, whose logits add up to most."""
    time = logits.shape[-1]
    begin, end = jnp.arange(time)[:, None], jnp.arange(time)[None, :]
    legal = (end >= begin) & (end < begin + longest)
    both = logits[:, 0, :, None] + logits[:, 1, None, :]
    best = jnp.where(legal, both, -jnp.inf).reshape(len(logits), -1).argmax(-1)
    return jnp.stack([best // time, best % time], -1)
