"""A BERT-family encoder with an optional sentence classifier (Devlin et al. 2018, arXiv 1810.04805)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.attention import HIDDEN, attend
from lora_jax.models.remat import mark_input, recomputed

Activation = Literal["gelu", "gelu_new", "relu"]
Head = Literal["class", "score", "token", "span", "choice"]
Family = Literal["bert", "roberta"]
# Computed again in the backward pass from its input: autodiff would keep two more arrays of the MLP's width.
ACTIVATIONS: dict[str, Any] = {
    "gelu": jax.checkpoint(functools.partial(nn.gelu, approximate=False)),
    "gelu_new": jax.checkpoint(functools.partial(nn.gelu, approximate=True)),
    "relu": nn.relu,
}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder of the BERT family. `num_classes` None gives hidden states, a number gives a classifier.

    `head` says what its outputs are for: class (logits of the first token), score (one number, num_classes 1), token (logits of
    every token), span (every token as begin and as end, num_classes 2), choice (one number a text, the texts of an example being
    compared, num_classes 1). `family` roberta (Liu et al. 2019, arXiv 1907.11692) numbers positions from 2 and has no segments;
    `max_positions` are those that tokens can have.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    type_vocab_size: int = 2
    norm_eps: float = 1e-12
    activation: Activation = "gelu"
    num_classes: int | None = None
    head: Head = "class"
    family: Family = "bert"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"Unknown activation {self.activation!r}: known are {', '.join(ACTIVATIONS)}.")
        needed = {"score": 1, "span": 2, "choice": 1}.get(self.head)
        if needed is not None and self.num_classes not in (None, needed):
            raise ValueError(f"A head for {self.head!r} needs num_classes {needed}, got {self.num_classes}.")

    @property
    def first_position(self) -> int:
        """The row of the position table that the first token reads: RoBERTa's counts on from its padding id, 1."""
        return 2 if self.family == "roberta" else 0

    @property
    def reads_every_token(self) -> bool:
        """Whether the head has outputs for every token, not only for the first."""
        return self.head in ("token", "span")


class Encoder(nn.Module):
    """Tokens to hidden states, or to class logits.

    With `scan` the blocks are one `layers` with a leading layer axis and compile once; without, they are `layers_0`, ..., and
    the last block of a classifier is computed for the first token alone. With
    `remat` a block is computed again in the backward pass instead of kept, with `offload` from an input that waits in host memory. Weights are float32, products in `dtype`.
    """

    config: EncoderConfig
    scan: bool = True
    remat: bool = False
    dtype: Any = jnp.float32
    offload: bool = False

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch time"], mask: Bool[Array, "batch time"], types: Int[Array, "batch time"] | None = None
    ) -> Any:
        """Logits (batch, num_classes), or (batch, time, num_classes) of heads that read every token; without a head, the hidden
        states (batch, time, hidden) and the pooled first token (batch, hidden).

        `mask` is True on real tokens, `types` are segment ids (0 if None).
        """
        config = self.config
        x = _Embeddings(config, self.dtype, name="embeddings")(tokens, types)
        bias = jnp.where(mask[:, None, None, :], 0.0, HIDDEN)
        block = recomputed(Block, scan=self.scan, offload=self.offload) if self.remat else Block
        if self.scan:
            layers = nn.scan(
                block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=config.num_layers
            )
            x, _ = layers(config, self.dtype, name="layers")(x, bias)
        else:
            for index in range(config.num_layers):
                # A classifier reads the first token alone: in the last block nothing else need be a query.
                last = index == config.num_layers - 1 and config.num_classes is not None and not config.reads_every_token
                x, _ = block(config, self.dtype, queries=1 if last else None, name=f"layers_{index}")(x, bias)
        head = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02), name="classifier")
        if config.num_classes is not None and config.reads_every_token:  # These have no pooler.
            return head(config.num_classes)(x)
        pooled = jnp.tanh(nn.Dense(config.hidden_size, dtype=self.dtype, name="pooler")(x[:, 0]))
        return (x, pooled) if config.num_classes is None else head(config.num_classes)(pooled)


class Block(nn.Module):
    """Self-attention and an MLP, each added to its input and normalised after (post-norm, as in BERT).

    `queries`: how many leading tokens are computed, None for all; every token is attended to.
    """

    config: EncoderConfig
    dtype: Any
    queries: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch time hidden"], bias: Float[Array, "batch 1 1 time"]) -> tuple[Array, None]:
        """The block's output, and None for nn.scan."""
        norm = functools.partial(nn.LayerNorm, epsilon=self.config.norm_eps, dtype=self.dtype)
        x = mark_input(x)
        asking = x[:, : self.queries]
        x = norm(name="attn_norm")(asking + _Attention(self.config, self.dtype, name="attn")(asking, x, bias))
        return norm(name="mlp_norm")(x + _Mlp(self.config, self.dtype, name="mlp")(x)), None


class _Embeddings(nn.Module):
    config: EncoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array, types: Array | None) -> Array:
        config = self.config
        embed = functools.partial(nn.Embed, features=config.hidden_size, dtype=self.dtype)
        x = embed(config.vocab_size, name="word")(tokens)
        first = config.first_position
        x += embed(config.max_positions + first, name="position")(first + jnp.arange(tokens.shape[1]))[None]
        one_kind = types is None or config.type_vocab_size == 1
        x += embed(config.type_vocab_size, name="type")(jnp.zeros_like(tokens) if one_kind else types)
        return nn.LayerNorm(epsilon=config.norm_eps, dtype=self.dtype, name="norm")(x)


class _Attention(nn.Module):
    config: EncoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, asking: Array, x: Array, bias: Array) -> Array:
        heads, hidden = self.config.num_heads, self.config.hidden_size
        dense = functools.partial(nn.Dense, hidden, dtype=self.dtype)
        split = lambda y: y.reshape(*y.shape[:-1], heads, hidden // heads)  # noqa: E731
        q, k, v = (split(dense(name=name)(source)) for name, source in zip("qkv", (asking, x, x), strict=True))
        y = attend(q, k, v, scale=1 / math.sqrt(hidden // heads), bias=bias)
        return dense(name="o")(y.reshape(*y.shape[:-2], hidden))


class _Mlp(nn.Module):
    config: EncoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="up")(x)
        return nn.Dense(self.config.hidden_size, dtype=self.dtype, name="down")(ACTIVATIONS[self.config.activation](hidden))
