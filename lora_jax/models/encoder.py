"""A BERT-family encoder with an optional sentence classifier (Devlin et al. 2018, arXiv
1810.04805).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.attention import HIDDEN, attend
from lora_jax.models.deberta import DebertaConfig, deberta_states
from lora_jax.models.encoder_parts import ACTIVATIONS, EncoderConfig, Mlp
from lora_jax.models.remat import mark_input, recomputed


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
        built = dict(scan=self.scan, remat=self.remat, dtype=self.dtype, offload=self.offload)
        if isinstance(config, DebertaConfig):
            x = deberta_states(config, tokens, mask, types, **built)
        else:
            x = _states(config, tokens, mask, types, **built)
        head = functools.partial(
            nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02), name="classifier"
        )
        if config.num_classes is not None and config.reads_every_token:  # These have no pooler.
            return head(config.num_classes)(x)
        if config.num_classes is None and not config.pools_states:
            return x, x[:, 0]
        pooled = nn.Dense(config.hidden_size, dtype=self.dtype, name="pooler")(x[:, 0])
        pooled = ACTIVATIONS[config.pooler_activation](pooled)
        return (x, pooled) if config.num_classes is None else head(config.num_classes)(pooled)


class Block(nn.Module):
    """Self-attention and an MLP, each added to its input and normalised after (post-norm, as in
    BERT).

    `queries`: how many leading tokens are computed, None for all; every token is attended to.
    """

    config: EncoderConfig
    dtype: Any
    queries: int | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time hidden"], bias: Float[Array, "batch 1 1 time"]
    ) -> tuple[Array, None]:
        """The block's output, and None for nn.scan."""
        norm = functools.partial(nn.LayerNorm, epsilon=self.config.norm_eps, dtype=self.dtype)
        x = mark_input(x)
        asking = x[:, : self.queries]
        x = norm(name="attn_norm")(
            asking + _Attention(self.config, self.dtype, name="attn")(asking, x, bias)
        )
        return norm(name="mlp_norm")(x + Mlp(self.config, self.dtype, name="mlp")(x)), None


def _states(
    config: EncoderConfig,
    tokens: Array,
    mask: Array,
    types: Array | None,
    *,
    scan: bool,
    remat: bool,
    dtype: Any,
    offload: bool,
) -> Array:
    """The last block's hidden states; the submodules are those of the `Encoder` that calls this."""
    x = _Embeddings(config, dtype, name="embeddings")(tokens, types)
    bias = jnp.where(mask[:, None, None, :], 0.0, HIDDEN)
    block = recomputed(Block, scan=scan, offload=offload) if remat else Block
    if scan:
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
        )
        x, _ = layers(config, dtype, name="layers")(x, bias)
    else:
        for index in range(config.num_layers):
            # A classifier reads the first token alone: in the last block no other is a query.
            last = (
                index == config.num_layers - 1
                and config.num_classes is not None
                and not config.reads_every_token
            )
            x, _ = block(config, dtype, queries=1 if last else None, name=f"layers_{index}")(
                x, bias
            )
    return x


class _Embeddings(nn.Module):
    config: EncoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array, types: Array | None) -> Array:
        config = self.config
        embed = functools.partial(nn.Embed, features=config.hidden_size, dtype=self.dtype)
        x = embed(config.vocab_size, name="word")(tokens)
        first = config.first_position
        x += embed(config.max_positions + first, name="position")(
            first + jnp.arange(tokens.shape[1])
        )[None]
        one_kind = types is None or config.type_vocab_size == 1
        x += embed(config.type_vocab_size, name="type")(
            jnp.zeros_like(tokens) if one_kind else types
        )
        return nn.LayerNorm(epsilon=config.norm_eps, dtype=self.dtype, name="norm")(x)


class _Attention(nn.Module):
    config: EncoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, asking: Array, x: Array, bias: Array) -> Array:
        heads, hidden = self.config.num_heads, self.config.hidden_size
        dense = functools.partial(nn.Dense, hidden, dtype=self.dtype)
        split = lambda y: y.reshape(*y.shape[:-1], heads, hidden // heads)
        q, k, v = (
            split(dense(name=name)(source))
            for name, source in zip("qkv", (asking, x, x), strict=True)
        )
        y = attend(q, k, v, scale=1 / math.sqrt(hidden // heads), bias=bias)
        return dense(name="o")(y.reshape(*y.shape[:-2], hidden))
