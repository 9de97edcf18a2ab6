"""What a batch's loss is made of, record by record: training sums it, predictions read it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from lora_jax.core.trainable import Trainables


class Sums(struct.PyTreeNode):
    """Sums over what a batch's loss counts. `weight` is how many records (or tokens) these are;
    divide by it for means. `correct` is None where nothing is right or wrong. `variables` are what
    the model changed of its own ones, by their names in the trainable tree; of several batches,
    their sum.
    """

    loss: Float[Array, ""]
    correct: Float[Array, ""] | None
    weight: Float[Array, ""]
    variables: Any = None


class Losses(struct.PyTreeNode):
    """The loss of every row of a batch, taken apart.

    The first axis of `loss` (nats, weighted), `correct` (weighted by whether the answer is right)
    and `weight` counts rows; a second one, where a row has several units (tokens, tags), counts
    these. What does not count (filler rows, prompts, padding) is 0 in all three; `correct` is None
    where nothing is right or wrong. `total` is the sum of `loss`, and what gradients are taken of:
    a language model's come from it alone. `answer` is what the model says of each row, as its
    metrics compare it (a class id, a score, tags, the first and last token of a span), None of a
    language model. `variables` are those of `Sums`.
    """

    total: Float[Array, ""]
    loss: Float[Array, "rows ..."]
    correct: Float[Array, "rows ..."] | None
    weight: Float[Array, "rows ..."]
    answer: Any = None
    variables: Any = None

    @classmethod
    def of(cls, loss: Any, right: Any, weight: Any, answer: Any = None) -> Losses:
        """From unweighted losses and whether each is right."""
        loss, right = loss * weight, right * weight
        return cls(total=loss.sum(), loss=loss, correct=right, weight=weight, answer=answer)

    def sums(self) -> Sums:
        """Over all rows and units."""
        correct = None if self.correct is None else self.correct.sum()
        weight = self.weight.sum()
        return Sums(loss=self.total, correct=correct, weight=weight, variables=self.variables)

    def rows(self) -> dict[str, Any]:
        """`loss`, `units` and `correct` of every row, summed over its units (correct is NaN where
        nothing is right or wrong), and `answer` where there is one.
        """
        correct = self.loss * math.nan if self.correct is None else self.correct
        found = {"loss": self.loss, "units": self.weight, "correct": correct}
        found = {name: x.reshape(x.shape[0], -1).sum(1) for name, x in found.items()}
        return found if self.answer is None else found | {"answer": self.answer}


@runtime_checkable
class PerExample(Protocol):
    """A model's loss on a batch, row by row: a pure function that jit takes.

    Equal for equal models and heads, and hashable: compiled programs are shared by it. It holds no
    weights. With a `key`, what is for training alone is on: dropout, label smoothing.
    """

    def __call__(
        self, frozen: Any, trainable: Trainables, batch: Any, key: jax.Array | None = None
    ) -> Losses:
        """The losses of a batch."""


@dataclass(frozen=True)
class Summed:
    """A loss as training steps take it: `(frozen, trainable, batch, key) -> (total, Sums)`."""

    per_example: PerExample

    def __call__(
        self, frozen: Any, trainable: Trainables, batch: Any, key: jax.Array | None
    ) -> tuple[Array, Sums]:
        """The sum of a batch's losses, and Sums."""
        losses = self.per_example(frozen, trainable, batch, key)
        return losses.total, losses.sums()


def classification(
    logits: Float[Array, "*rows classes"],
    labels: Int[Array, "*rows"],
    weight: Float[Array, "*rows"],
    smoothing: float = 0.0,
) -> Losses:
    """Cross-entropy in nats, computed in float32, and the likeliest class as the answer.

    With `smoothing` s the label has weight 1 - s, and all classes share s (Szegedy et al. 2016,
    arXiv 1512.00567).
    """
    logits = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    if smoothing:
        evenly = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
        losses = (1 - smoothing) * losses + smoothing * evenly
    answer = logits.argmax(-1)
    return Losses.of(losses, answer == labels, weight, answer)
