"""The loss of a language model on chosen tokens, its vocabulary part in chunks."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array

from lora_jax.adapters.apply import apply
from lora_jax.adapters.head import frozen_head
from lora_jax.core.trainable import Trainables, combine, given_fields, partition
from lora_jax.kernels.vocab_loss import CHUNK, vocabulary_loss
from lora_jax.models.decoder import Decoder
from lora_jax.models.t5 import T5
from lora_jax.tasks.losses import Losses, Summed


@dataclass(frozen=True)
class TokenLosses:
    """The loss of a language model, token by token: see `PerExample`.

    Batches have `tokens`, `segments` (0 is padding), `labels` (each token's successor) and
    `loss_weight`, all (batch, time); those of an encoder-decoder have `target` and
    `target_segments` as well, of which the labels are the successors. `chunk` tokens' logits are
    alive at a time, where the head is trained or quantised, or labels are smoothed, and so has any.
    `smoothing` is of labels, in training.
    """

    model: Decoder | T5
    chunk: int = CHUNK
    smoothing: float = 0.0

    def __call__(
        self, frozen: Any, trainable: Trainables, batch: Any, key: jax.Array | None = None
    ) -> Losses:
        """The losses of a batch."""
        hidden, _ = apply(
            self.model, frozen, trainable, *hidden_inputs(batch), key=key, method="hidden"
        )
        flat, weight = hidden.reshape(-1, hidden.shape[-1]), batch["loss_weight"]
        arguments = (flat, batch["labels"].reshape(-1), weight.reshape(-1))

        smoothing = 0.0 if key is None else self.smoothing
        loss_of = None if smoothing else frozen_head(self.model, frozen, trainable)
        if loss_of is not None:
            total, *each = loss_of(*arguments)
        else:
            head, trained = self._head(frozen, trainable)
            logits = functools.partial(_logits, self.model)
            total, *each = vocabulary_loss(logits, head, trained, *arguments, self.chunk, smoothing)

        loss, correct = (part.reshape(weight.shape) for part in each)
        return Losses(total=total, loss=loss, correct=correct, weight=weight)

    def _head(self, frozen: Any, trainable: Trainables) -> tuple[Any, dict[str, Any]]:
        """The output head's (frozen weights, data of what is trained), and what is trained."""
        head = self.model.output_head.module
        trained = {path: leaf for path, leaf in trainable.items() if path.startswith(f"{head}/")}
        if any("dropout" in given_fields(leaf) for leaf in trained.values()):
            raise ValueError(
                "LoRA dropout on head/kernel is not supported: the head runs in chunks. Give it a "
                "rule with dropout=0.0."
            )
        # Only what is trained is differentiated: the data that go with it stand with the frozen.
        trained, fixed = partition(trained)
        return ({head: frozen.get(head, {})}, fixed), trained


def language_loss(model: Decoder | T5, *, chunk: int = CHUNK) -> Summed:
    """The loss of a language model as training steps take it: `(frozen, trainable, batch, key) ->
    (sum of losses, Sums)`, summed over tokens. See `TokenLosses`.
    """
    return Summed(TokenLosses(model, chunk))


def hidden_inputs(batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the model's `hidden` is called with: tokens and segments, and those of the target where
    there is one.
    """
    return tuple(
        batch[name] for name in ("tokens", "segments", "target", "target_segments") if name in batch
    )


def _logits(model: Decoder | T5, untrained: Any, trained: Any, hidden: Array) -> Array:
    frozen, fixed = untrained
    return apply(model, frozen, combine(trained, fixed), hidden, method="logits")
