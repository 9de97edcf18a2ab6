"""What differs between kinds of tasks: their loss and their batches. The loop asks here."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from lora_jax.data import Batches, Encoded
from lora_jax.data.completions import EncodedCompletions
from lora_jax.data.pairs import EncodedPairs, PairBatches
from lora_jax.data.token_packing import PackedBatches
from lora_jax.models.decoder import Decoder
from lora_jax.models.encoder import Encoder
from lora_jax.models.t5 import T5
from lora_jax.tasks.language_loss import language_loss
from lora_jax.tasks.losses import ENCODER_LOSSES, classifier_loss


def loss_of(model: nn.Module) -> Any:
    """The loss function of a model: of a language model on completions, of an encoder by its head,
    of any other as a classifier.
    """
    if isinstance(model, Decoder | T5):
        return language_loss(model)
    return (
        ENCODER_LOSSES[model.config.head](model)
        if isinstance(model, Encoder)
        else classifier_loss(model)
    )


def unit_of(model: nn.Module) -> str:
    """What the model's loss and accuracy are means over."""
    if isinstance(model, Decoder | T5):
        return "tokens"
    return "words" if isinstance(model, Encoder) and model.config.head == "token" else "records"


def batches_of(
    encoded: Encoded | EncodedCompletions,
    buckets: tuple[int, ...],
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    accumulate: int = 1,
) -> Batches | PackedBatches:
    """The batches of a split: padded sentences, or packed completions or pairs in rows that
    `accumulate` divides.
    """
    common = dict(seed=seed, shuffle=shuffle, epochs=epochs)
    if isinstance(encoded, EncodedPairs):
        return PairBatches(encoded, batch_size, **common, row_multiple=accumulate)
    if isinstance(encoded, EncodedCompletions):
        return PackedBatches(
            encoded, batch_size, **common, length=encoded.max_length, row_multiple=accumulate
        )
    return Batches(encoded, buckets, batch_size, **common)
