"""The loss of a language model, decoder or encoder-decoder, on chosen tokens, its vocabulary part
in chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from lora_jax.adapters.apply import apply
from lora_jax.adapters.head import frozen_head
from lora_jax.core.lowrank import LowRank
from lora_jax.core.trainable import Trainables
from lora_jax.kernels.vocab_loss import CHUNK, vocabulary_loss
from lora_jax.models.decoder import Decoder
from lora_jax.models.t5 import T5
from lora_jax.tasks.losses import Sums


def language_loss(model: Decoder | T5, *, chunk: int = CHUNK) -> Any:
    """The loss function of a language model: `(frozen, trainable, batch, key) -> (sum of losses,
    Sums)`, summed over tokens.

    Batches have `tokens`, `segments` (0 is padding), `labels` (each token's successor) and
    `loss_weight`, all (batch, time); those of an encoder-decoder have `target` and
    `target_segments` as well, of which the labels are the successors.

    Args:
        chunk: tokens whose logits are alive at a time, where the head is trained or quantised and
            so has any.
    """
    head = model.output_head.module

    def loss(
        frozen: Any, trainable: Trainables, batch: dict[str, Array], key: jax.Array | None
    ) -> tuple[Array, Sums]:
        hidden, _ = apply(model, frozen, trainable, *hidden_inputs(batch), key=key, method="hidden")
        flat = hidden.reshape(-1, hidden.shape[-1])
        labels, weight = batch["labels"].reshape(-1), batch["loss_weight"].reshape(-1)
        words = frozen_head(model, frozen, trainable)
        if words is not None:
            total, correct = words.loss(flat, labels, weight)
            return total, Sums(loss=total, correct=correct, weight=weight.sum())
        trained = {path: leaf for path, leaf in trainable.items() if path.startswith(f"{head}/")}
        if any(isinstance(leaf, LowRank) and leaf.dropout is not None for leaf in trained.values()):
            raise ValueError(
                "LoRA dropout on head/kernel is not supported: the head runs in chunks. Give it a "
                "rule with dropout=0.0."
            )
        run = functools.partial(_logits, model)
        total, correct = vocabulary_loss(
            run, {head: frozen.get(head, {})}, trained, flat, labels, weight, chunk
        )
        return total, Sums(loss=total, correct=correct, weight=weight.sum())

    return loss


def hidden_inputs(batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the model's `hidden` is called with: tokens and segments, and those of the target where
    there is one.
    """
    return tuple(
        batch[name] for name in ("tokens", "segments", "target", "target_segments") if name in batch
    )


def _logits(model: Decoder | T5, frozen: Any, trained: Any, hidden: Array) -> Array:
    return apply(model, frozen, trained, hidden, method="logits")
