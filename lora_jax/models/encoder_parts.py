"""What encoders of the BERT family share: their configuration, activations, embeddings and block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from lora_jax.core.order import zero_after
from lora_jax.models.layers import mark_input

Activation = Literal["gelu", "gelu_new", "relu", "tanh"]
Head = Literal["class", "score", "token", "span", "choice"]
Family = Literal["bert", "roberta", "deberta-v2"]


def _from_input(activation: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The activation, computed again in the backward pass from its input: autodiff keeps up to five
    arrays of the MLP's width.

    (`jax.checkpoint` is undone where layers are unrolled: a compiler finds that both passes compute
    the same, and keeps that.)
    """

    @jax.custom_vjp
    def apply(x: Array) -> Array:
        return activation(x)

    def backward(x: Array, g: Array) -> tuple[Array]:
        return jax.vjp(activation, x + zero_after(g).astype(x.dtype))[1](g)

    apply.defvjp(lambda x: (apply(x), x), backward)
    return apply


ACTIVATIONS: dict[str, Any] = {
    "gelu": _from_input(functools.partial(nn.gelu, approximate=False)),
    "gelu_new": _from_input(functools.partial(nn.gelu, approximate=True)),
    "relu": nn.relu,
    "tanh": jnp.tanh,
}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder of the BERT family. `num_classes` None gives hidden states, a number
    gives a classifier.

    `head` says what its outputs are for: class (logits of the first token), score (one number,
    num_classes 1), token (logits of every token), span (every token as begin and as end,
    num_classes 2), choice (one number a text, the texts of an example being compared, num_classes
    1). `family` roberta (Liu et al. 2019, arXiv 1907.11692) numbers positions from 2 and has no
    segments; `max_positions` are those that tokens can have.

    In training, which is where `apply` is given a key named dropout, `dropout` is the rate of the
    embeddings and of what attention and MLP add to their input, `attention_dropout` of the weights
    of attention, `head_dropout` before the classifier (of RoBERTa also before the layer that its
    head begins with).
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
    pooler_activation: Activation = "tanh"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}."
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"Unknown activation {self.activation!r}: known are {', '.join(ACTIVATIONS)}."
            )
        needed = {"score": 1, "span": 2, "choice": 1}.get(self.head)
        if needed is not None and self.num_classes not in (None, needed):
            raise ValueError(
                f"A head for {self.head!r} needs num_classes {needed}, got {self.num_classes}."
            )

    @property
    def first_position(self) -> int:
        """The row of the position table that the first token reads: RoBERTa's counts on from its
        padding id, 1.
        """
        return 2 if self.family == "roberta" else 0

    @property
    def pooler_in_head(self) -> bool:
        """Whether the layer between hidden states and classifier is the head's: pretraining had
        none.
        """
        return self.family != "bert"

    @property
    def reads_every_token(self) -> bool:
        """Whether the head has outputs for every token, not only for the first."""
        return self.head in ("token", "span")

    @property
    def last_block(self) -> dict[str, int]:
        """How the last block differs: a classifier reads the first token, so no other asks there."""
        only_first = self.num_classes is not None and not self.reads_every_token
        return {"queries": 1} if only_first else {}


def dropped(module: nn.Module, x: Array, rate: float) -> Array:
    """`x` after dropout, by the random numbers of the module that calls; `x` itself where `apply`
    was given no key named dropout.
    """
    return nn.Dropout(rate, deterministic=not module.has_rng("dropout"))(x)


class Embeddings(nn.Module):
    """Words, with positions and segments where the model adds them, normalised.

    `size`: of the words, projected where it is not the hidden states'.
    """

    config: EncoderConfig
    dtype: Any
    size: int
    positions: bool = True

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch time"], types: Int[Array, "batch time"] | None
    ) -> Float[Array, "batch time hidden"]:
        """The first block's input; `types` None are segments of 0."""
        config = self.config
        embed = functools.partial(nn.Embed, features=self.size, dtype=self.dtype)
        x = embed(config.vocab_size, name="word")(tokens)
        if self.positions:
            first = config.first_position
            rows = first + jnp.arange(tokens.shape[1])
            x += embed(config.max_positions + first, name="position")(rows)[None]
        if config.type_vocab_size:
            one_kind = types is None or config.type_vocab_size == 1
            x += embed(config.type_vocab_size, name="type")(
                jnp.zeros_like(tokens) if one_kind else types
            )
        if self.size != config.hidden_size:
            x = nn.Dense(config.hidden_size, use_bias=False, dtype=self.dtype, name="project")(x)
        x = nn.LayerNorm(epsilon=config.norm_eps, dtype=self.dtype, name="norm")(x)
        return dropped(self, x, config.dropout)


class Block(nn.Module):
    """Self-attention and an MLP, each added to its input and normalised after (post-norm, as in
    BERT).

    `queries`: how many leading tokens are computed, None for all; every token is attended to.
    `attention`: of a kind of encoder, a module that is called with the asking tokens, all tokens
    and what all blocks read.
    """

    config: EncoderConfig
    dtype: Any
    queries: int | None = None
    attention: ClassVar[type[nn.Module]]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time hidden"], shared: Mapping[str, Any]
    ) -> tuple[Array, tuple[()]]:
        """The block's output, and nothing besides."""
        norm = functools.partial(nn.LayerNorm, epsilon=self.config.norm_eps, dtype=self.dtype)
        x = mark_input(x)
        asking = x[:, : self.queries]
        drop = functools.partial(dropped, self, rate=self.config.dropout)
        attended = self.attention(self.config, self.dtype, name="attn")(asking, x, shared)
        x = norm(name="attn_norm")(asking + drop(attended))
        return norm(name="mlp_norm")(x + drop(Mlp(self.config, self.dtype, name="mlp")(x))), ()


class Mlp(nn.Module):
    """`down(act(up(x)))`."""

    config: EncoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        """The MLP's output."""
        hidden = nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="up")(x)
        return nn.Dense(self.config.hidden_size, dtype=self.dtype, name="down")(
            ACTIVATIONS[self.config.activation](hidden)
        )
