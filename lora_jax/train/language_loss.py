"""The loss of a causal language model on chosen tokens, its vocabulary part in chunks."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jaxtyping import Array

from lora_jax.adapt.apply import Lora, apply
from lora_jax.core.lowrank import LowRank
from lora_jax.kernels.vocab_loss import vocabulary_loss
from lora_jax.models.decoder import Decoder
from lora_jax.train.losses import Sums


def language_loss(model: Decoder, *, chunk: int = 128) -> Any:
    """The loss function of a decoder: `(lora, frozen, batch, key) -> (sum of losses, Sums)`, summed over tokens.

    Batches have `tokens`, `segments` (0 is padding), `labels` (each token's successor) and `loss_weight`, all (batch, time).

    Args:
        chunk: tokens whose logits are alive at a time.
    """
    head = "embed" if model.config.tied else "head"

    def loss(lora: Lora, frozen: Any, batch: dict[str, Array], key: jax.Array | None) -> tuple[Array, Sums]:
        hidden, _ = apply(model, frozen, lora, batch["tokens"], batch["segments"], key=key, method="hidden")
        trained = {path: leaf for path, leaf in lora.items() if path.startswith(f"{head}/")}
        if any(isinstance(leaf, LowRank) and leaf.dropout is not None for leaf in trained.values()):
            raise ValueError("LoRA dropout on head/kernel is not supported: the head runs in chunks. Give it a rule with dropout=0.0.")
        flat = hidden.reshape(-1, hidden.shape[-1])
        weight = batch["loss_weight"].reshape(-1)
        run = functools.partial(_logits, model)
        total, correct = vocabulary_loss(run, {head: frozen.get(head, {})}, trained, flat, batch["labels"].reshape(-1), weight, chunk)
        return total, Sums(loss=total, correct=correct, weight=weight.sum())

    return loss


def _logits(model: Decoder, frozen: Any, trained: Any, hidden: Array) -> Array:
    return apply(model, frozen, trained, hidden, method="logits")
