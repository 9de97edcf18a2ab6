"""A BERT-family encoder with an optional sentence classifier (Devlin et al. 2018, arXiv
1810.04805).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Int

from lora_jax.models.attention import HIDDEN, attend
from lora_jax.models.deberta import DebertaConfig, deberta_states
from lora_jax.models.encoder_parts import (
    ACTIVATIONS,
    Block,
    Embeddings,
    EncoderConfig,
    dropped,
)
from lora_jax.models.layers import through_layers


class Encoder(nn.Module):
    """Tokens to hidden states, or to class logits.

    With `scan` the blocks are one `layers` with a leading layer axis and compile once; without,
    they are `layers_0`, ..., and the last block of a classifier is computed for the first token
    alone. With `remat` a block is computed again in the backward pass instead of kept, with
    `offload` from an input that waits in host memory. Weights are float32, products in `dtype`.
    """

    config: EncoderConfig
    scan: bool = True
    remat: bool = False
    dtype: Any = jnp.float32
    offload: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        mask: Bool[Array, "batch time"],
        types: Int[Array, "batch time"] | None = None,
    ) -> Any:
        """Logits (batch, num_classes), or (batch, time, num_classes) of heads that read every
        token; without a head, the hidden states (batch, time, hidden) and the pooled first token
        (batch, hidden), of DeBERTa its hidden state.

        `mask` is True on real tokens, `types` are segment ids (0 if None).
        """
        config = self.config
        deberta = isinstance(config, DebertaConfig)
        x = (deberta_states if deberta else _states)(self, tokens, mask, types)

        head = functools.partial(
            nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02), name="classifier"
        )
        drop = functools.partial(dropped, self, rate=config.head_dropout)
        if config.num_classes is not None and config.reads_every_token:  # These have no pooler.
            return head(config.num_classes)(drop(x))
        first = x[:, 0]
        if config.num_classes is None and deberta:  # Its pooler is its head's.
            return x, first
        if config.family == "roberta" and config.num_classes is not None:
            first = drop(first)
        pooled = nn.Dense(config.hidden_size, dtype=self.dtype, name="pooler")(first)
        pooled = ACTIVATIONS[config.pooler_activation](pooled)
        return (x, pooled) if config.num_classes is None else head(config.num_classes)(drop(pooled))


def _states(model: Encoder, tokens: Array, mask: Array, types: Array | None) -> Array:
    """The last block's hidden states; the submodules are those of `model`, which calls this."""
    config, dtype = model.config, model.dtype
    x = Embeddings(config, dtype, config.hidden_size, name="embeddings")(tokens, types)
    shared = {"bias": jnp.where(mask[:, None, None, :], 0.0, HIDDEN)}
    fields = (config, dtype)
    return through_layers(
        model, _Block, fields, config.num_layers, x, shared, last=config.last_block
    )[0]


class _Attention(nn.Module):
    config: EncoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, asking: Array, x: Array, shared: Mapping[str, Any]) -> Array:
        heads, hidden = self.config.num_heads, self.config.hidden_size
        dense = functools.partial(nn.Dense, hidden, dtype=self.dtype)
        split = lambda y: y.reshape(*y.shape[:-1], heads, hidden // heads)
        q, k, v = (
            split(dense(name=name)(source))
            for name, source in zip("qkv", (asking, x, x), strict=True)
        )
        rate = self.config.attention_dropout
        is_on = rate > 0 and self.has_rng("dropout")
        drop = functools.partial(dropped, self, rate=rate) if is_on else None
        scale = 1 / math.sqrt(hidden // heads)
        y = attend(q, k, v, scale=scale, bias=shared["bias"], drop=drop)
        return dense(name="o")(y.reshape(*y.shape[:-2], hidden))


class _Block(Block):
    attention = _Attention
