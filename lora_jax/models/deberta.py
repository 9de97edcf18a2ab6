"""DeBERTa-v2 and -v3: an encoder whose attention reads contents and relative positions apart (He et
al. 2021, arXiv 2006.03654, 2111.09543).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.attention import HIDDEN
from lora_jax.models.encoder_parts import (
    ACTIVATIONS,
    Activation,
    Block,
    Embeddings,
    EncoderConfig,
    Family,
    dropped,
)
from lora_jax.models.layers import through_layers


@dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    """An encoder configuration with what DeBERTa adds.

    `terms` of the attention beside content to content: c2p (content asks position) and p2c
    (position asks content); none makes it plain. Distances up to half of `buckets` have a row each,
    longer ones share rows spaced by their logarithm up to `max_distance`; with 0 buckets every
    distance below `max_distance` has one. With `shared_keys` positions go through the projections
    of contents. `absolute`: whether positions are added to the words as well. `conv_size` 0 has no
    convolution beside the first block. `type_vocab_size` 0 has no segments. `embedding_size` None
    is `hidden_size`.
    """

    type_vocab_size: int = 0
    norm_eps: float = 1e-7
    family: Family = "deberta-v2"
    terms: tuple[str, ...] = ("c2p", "p2c")
    buckets: int = 256
    max_distance: int = 512
    shared_keys: bool = True
    norm_relative: bool = True
    absolute: bool = False
    embedding_size: int | None = None
    conv_size: int = 0
    conv_groups: int = 1
    conv_activation: Activation = "tanh"
    pooler_activation: Activation = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if odd := sorted(set(self.terms) - {"c2p", "p2c"}):
            raise ValueError(
                f"Unknown terms of the attention: {', '.join(odd)}; known are c2p and p2c."
            )
        for name in (self.conv_activation, self.pooler_activation):
            if name not in ACTIVATIONS:
                raise ValueError(
                    f"Unknown activation {name!r}: known are {', '.join(ACTIVATIONS)}."
                )
        if self.conv_size and (self.conv_size % 2 == 0 or self.hidden_size % self.conv_groups):
            raise ValueError(
                f"A convolution needs an odd size and groups that divide {self.hidden_size}, got "
                f"{self.conv_size} and {self.conv_groups}."
            )

    @property
    def span(self) -> int:
        """Distances of each sign that have rows of their own: the table of relative positions has
        twice as many rows.
        """
        return self.buckets or self.max_distance


def deberta_states(
    model: Any,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    types: Int[Array, "batch time"] | None,
) -> Float[Array, "batch time hidden"]:
    """The last block's hidden states; the submodules are those of the `Encoder` that calls this."""
    config, dtype = model.config, model.dtype
    size = config.embedding_size or config.hidden_size
    x = Embeddings(config, dtype, size, config.absolute, name="embeddings")(tokens, types)
    x *= mask[..., None].astype(dtype)  # The convolution reads padding as well.

    shared: dict[str, Any] = {"bias": jnp.where(mask[:, None, None, :], 0.0, HIDDEN)}
    if config.terms:
        shared["relative"] = _Relative(config, dtype, name="relative")()
        shared["rows"] = jnp.asarray(relative_rows(config, tokens.shape[1]))
    if config.conv_size:
        shared["conv"] = _Convolution(config, dtype, name="conv")(x, mask)
        shared["mask"] = mask[..., None]
    first = np.arange(config.num_layers) == 0
    return through_layers(
        model,
        _Block,
        (config, dtype),
        config.num_layers,
        x,
        shared,
        each=(first,),
        last=config.last_block,
    )[0]


def relative_rows(config: DebertaConfig, time: int) -> Int[np.ndarray, "time time"]:
    """For query i and key j, the row of the table of relative positions that stands for the
    distance i - j.
    """
    distance = np.arange(time)[:, None] - np.arange(time)[None]
    if config.buckets:
        half = config.buckets // 2
        far = np.abs(distance) > half
        ratio = np.where(far, np.abs(distance), half).astype(np.float32) / np.float32(half)
        # In float32 and in this order, as the published code has it: it is rounded up.
        steps = (
            np.ceil(
                np.log(ratio)
                / np.log(np.float32((config.max_distance - 1) / half))
                * np.float32(half - 1)
            )
            + half
        )
        distance = np.where(far, np.sign(distance) * steps, distance).astype(np.int64)
    return np.clip(distance + config.span, 0, 2 * config.span - 1).astype(np.int32)


class _Relative(nn.Module):
    """The states of relative positions (2 * span, hidden), the same for all blocks."""

    config: DebertaConfig
    dtype: Any

    @nn.compact
    def __call__(self) -> Array:
        config = self.config
        rows = jnp.arange(2 * config.span)
        x = nn.Embed(2 * config.span, config.hidden_size, dtype=self.dtype, name="table")(rows)
        if config.norm_relative:
            x = nn.LayerNorm(epsilon=config.norm_eps, dtype=self.dtype, name="norm")(x)
        return x


class _Convolution(nn.Module):
    """What is added to the first block's output, and scale and bias of the norm after that."""

    config: DebertaConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array, Array]:
        config = self.config
        y = nn.Conv(
            config.hidden_size,
            (config.conv_size,),
            padding=config.conv_size // 2,
            feature_group_count=config.conv_groups,
            dtype=self.dtype,
            name="window",
        )(x)
        y = dropped(self, jnp.where(mask[..., None], y, 0), config.dropout)
        y = ACTIVATIONS[config.conv_activation](y)
        # The norm is of a block's output, so it runs there; its weights are read here, once.
        return y, *_Affine(config.hidden_size, name="norm")()


class _Affine(nn.Module):
    size: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        return self.param("scale", nn.initializers.ones, (self.size,)), self.param(
            "bias", nn.initializers.zeros, (self.size,)
        )


class _Attention(nn.Module):
    config: DebertaConfig
    dtype: Any

    @nn.compact
    def __call__(self, asking: Array, x: Array, shared: dict[str, Any]) -> Array:
        config = self.config
        heads, hidden = config.num_heads, config.hidden_size
        dense = functools.partial(nn.Dense, hidden, dtype=self.dtype)
        split = lambda y: y.reshape(*y.shape[:-1], heads, hidden // heads)
        dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        q, k, v = (dense(name=name) for name in "qkv")
        scale = jnp.asarray(1 / math.sqrt(hidden // heads * (1 + len(config.terms))), self.dtype)
        queries, keys, values = split(q(asking)) * scale, split(k(x)), split(v(x))

        relative = shared.get("relative")
        if relative is not None:  # Each block drops other rows of it.
            relative = dropped(self, relative, config.dropout)
        scores = dot("bqhd,bkhd->bhqk", queries, keys)
        if "c2p" in config.terms:
            places = split((k if config.shared_keys else dense(name="pos_k"))(relative))
            rows = shared["rows"][None, None, : asking.shape[1]]
            scores += jnp.take_along_axis(dot("bqhd,rhd->bhqr", queries, places), rows, axis=-1)
        if "p2c" in config.terms:
            places = split((q if config.shared_keys else dense(name="pos_q"))(relative)) * scale
            rows = shared["rows"][None, None, : asking.shape[1]].swapaxes(-1, -2)
            scores += jnp.take_along_axis(
                dot("bkhd,rhd->bhkr", keys, places), rows, axis=-1
            ).swapaxes(-1, -2)
        weights = jax.nn.softmax(scores + shared["bias"], axis=-1).astype(self.dtype)
        weights = dropped(self, weights, config.attention_dropout)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, values)
        return dense(name="o")(y.reshape(*y.shape[:-2], hidden))


class _Block(Block):
    attention = _Attention

    def __call__(self, x: Array, shared: dict[str, Any], first: Any) -> tuple[Array, tuple[()]]:
        """The block's output. `first`: whether it is the block beside which the convolution
        stands.
        """
        x, _ = super().__call__(x, shared)
        if self.config.conv_size:
            beside, scale, bias = shared["conv"]
            mixed = _normalised(x + beside[:, : self.queries], scale, bias, self.config.norm_eps)
            x = jnp.where(first, (mixed * shared["mask"][:, : self.queries]).astype(x.dtype), x)
        return x, ()


def _normalised(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(
        jnp.square(x - mean).mean(-1, keepdims=True) + eps
    ) * scale + bias
