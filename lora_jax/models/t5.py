"""T5, its gated form 1.1 and Flan-T5: an encoder-decoder with relative positions (Raffel et al.
2020, arXiv 1910.10683).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.attention import attend
from lora_jax.models.decoder import Mlp
from lora_jax.models.decoder_config import ACTIVATIONS, Activation
from lora_jax.models.head import OutputHead
from lora_jax.models.layers import kept, mark_input, through_layers


@dataclass(frozen=True)
class T5Config:
    """Sizes of an encoder-decoder. `num_layers` are the encoder's.

    Half of `buckets` are for distances of their own, the others are spaced by the logarithm up to
    `max_distance`. `tied`: whether the logits are read from the word embedding; `scaled`: whether
    hidden states are multiplied by hidden_size ** -0.5 before. `start_id` is the token that the
    decoder begins with.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    activation: Activation = "relu"
    gated: bool = False
    tied: bool = True
    scaled: bool = True
    start_id: int = 0
    max_positions: int = 2**30  # nothing in the model bounds the length of a text
    mlp_bias: ClassVar[bool] = False  # no product of T5 has one

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"Unknown activation {self.activation!r}: known are {', '.join(ACTIVATIONS)}."
            )
        if self.buckets < 4 or self.buckets % 4 or self.max_distance <= self.buckets // 2:
            raise ValueError(
                f"buckets {self.buckets} must be a multiple of 4, and max_distance "
                f"{self.max_distance} above half of them."
            )


class T5Cache(struct.PyTreeNode):
    """What the decoder has read, in shapes that never change. `index` is the slot of the next
    token, the same for all rows.

    `k`, `v`: (layers, batch, slots, heads, head_dim) of its own tokens; `cross_k`, `cross_v`:
    (layers, batch, source, heads, head_dim) of the encoder's hidden states, computed once. `source`
    is True on real tokens of the source.
    """

    k: Float[Array, "layers batch slots heads dim"]
    v: Float[Array, "layers batch slots heads dim"]
    cross_k: Float[Array, "layers batch source heads dim"]
    cross_v: Float[Array, "layers batch source heads dim"]
    source: Bool[Array, "batch source"]
    index: Int[Array, ""]


class T5(nn.Module):
    """Source and target tokens to logits of the target's next tokens.

    With `scan` the blocks of each stack are one `layers` with a leading layer axis; without, they
    are `layers_0`, ... With `remat` a block is computed again in the backward pass instead of kept,
    with `offload` from an input that waits in host memory. Products in `dtype`, softmax and norms
    in float32.
    """

    writes_targets: ClassVar[bool] = True  # of sources; a decoder continues its prompt

    config: T5Config
    scan: bool = True
    remat: bool = False
    dtype: Any = jnp.float32
    offload: bool = False

    def setup(self) -> None:
        """The submodules; their names are the paths of the weights."""
        config = self.config
        self.embed = nn.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(1.0),
        )
        stack = functools.partial(
            _Stack, config, scan=self.scan, remat=self.remat, dtype=self.dtype, offload=self.offload
        )
        self.encoder, self.decoder = stack(causal=False), stack(causal=True)
        if not config.tied:
            self.head = nn.Dense(config.vocab_size, use_bias=False, dtype=self.dtype)

    def __call__(
        self,
        tokens: Int[Array, "batch source"],
        segments: Int[Array, "batch source"],
        target: Int[Array, "batch target"],
        target_segments: Int[Array, "batch target"],
    ) -> Float[Array, "batch target vocab"]:
        """Logits of the token after each of `target`, which begins with `start_id`.

        Args:
            segments, target_segments: examples packed into a row are told apart by numbers from 1,
                the same in source and target; 0 is padding. A mask of 0 and 1 is a case of it.
        """
        return self.logits(self.hidden(tokens, segments, target, target_segments)[0])

    def hidden(
        self,
        tokens: Int[Array, "batch source"],
        segments: Int[Array, "batch source"],
        target: Int[Array, "batch target"],
        target_segments: Int[Array, "batch target"],
    ) -> tuple[Float[Array, "batch target hidden"], None]:
        """The decoder's normalised hidden states, which `logits` takes, and no cache."""
        source = self.encode(tokens, segments)
        mask = _same(target_segments, target_segments) & (_distance(target.shape[1]) <= 0)
        return self.decoder(
            self.embed(target),
            mask,
            _distance(target.shape[1]),
            source,
            _same(target_segments, segments),
        )

    def encode(
        self, tokens: Int[Array, "batch source"], segments: Int[Array, "batch source"]
    ) -> Float[Array, "batch source hidden"]:
        """The encoder's normalised hidden states."""
        return self.encoder(
            self.embed(tokens), _same(segments, segments), _distance(tokens.shape[1])
        )[0]

    def start(
        self, tokens: Int[Array, "batch source"], mask: Bool[Array, "batch source"], slots: int
    ) -> tuple[Float[Array, "batch vocab"], T5Cache]:
        """Logits of the first token of every text, and a cache with room for `slots` tokens, the
        start token among them.
        """
        config, batch = self.config, tokens.shape[0]
        empty = jnp.zeros(
            (config.num_decoder_layers, batch, slots, config.num_heads, config.head_dim), self.dtype
        )
        first = jnp.full((batch, 1), config.start_id, jnp.int32)
        source = self.encode(tokens, mask.astype(jnp.int32))
        return self._decode(first, (empty, empty), mask, jnp.zeros((), jnp.int32), source)

    def step(
        self, tokens: Int[Array, "batch 1"], cache: T5Cache
    ) -> tuple[Float[Array, "batch vocab"], T5Cache]:
        """Logits after one more token of every text, and the cache with it. The caller sees to it
        that there is room.
        """
        return self._decode(
            tokens,
            (cache.k, cache.v, cache.cross_k, cache.cross_v),
            cache.source,
            cache.index,
            None,
        )

    def _decode(
        self,
        tokens: Array,
        past: tuple[Array, ...],
        mask: Array,
        index: Array,
        source: Array | None,
    ) -> tuple[Array, T5Cache]:
        distance = jnp.arange(past[0].shape[2])[None] - index
        seen = jnp.broadcast_to(distance <= 0, (tokens.shape[0], *distance.shape))
        x, past = self.decoder(
            self.embed(tokens), seen, distance, source, mask[:, None], past, index
        )
        return self.logits(x[:, 0]), T5Cache(*past, source=mask, index=index + 1)

    @property
    def output_head(self) -> OutputHead:
        """What `logits` computes, for losses that take the vocabulary in blocks."""
        scale = self.config.hidden_size**-0.5 if self.config.scaled else 1.0
        return (
            OutputHead("embed", "embedding", 0, scale)
            if self.config.tied
            else OutputHead("head", "kernel", 1, scale)
        )

    def logits(self, x: Float[Array, "*batch hidden"]) -> Float[Array, "*batch vocab"]:
        """Logits of hidden states."""
        if self.config.scaled:
            x = x * jnp.asarray(self.config.hidden_size**-0.5, x.dtype)
        return self.embed.attend(x) if self.config.tied else self.head(x)


def position_bucket(config: T5Config, distance: Any, *, causal: bool) -> Any:
    """The row of the table of relative positions for distances key - query; causal tables have no
    rows for later keys.
    """
    # A table made on the host in float32, in the published order: its rounding decides where a
    # bucket ends.
    reach = np.arange(config.max_distance + 1)
    count = config.buckets if causal else config.buckets // 2
    exact = count // 2
    far = np.log(np.maximum(reach, exact).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(config.max_distance / exact)
    )
    rows = np.where(
        reach < exact,
        reach,
        np.minimum(exact + (far * np.float32(count - exact)).astype(np.int64), count - 1),
    )
    later = np.zeros_like(rows) if causal else rows + count * (reach > 0)
    table = np.concatenate([rows[::-1], later[1:]]).astype(np.int32)
    return jnp.asarray(table)[
        jnp.clip(distance, -config.max_distance, config.max_distance) + config.max_distance
    ]


class _Stack(nn.Module):
    """The blocks of the encoder or, `causal`, of the decoder, and the norm after them."""

    config: T5Config
    causal: bool
    scan: bool
    remat: bool
    dtype: Any
    offload: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        distance: Any,
        source: Array | None = None,
        source_mask: Array | None = None,
        past: tuple[Array, ...] = (),
        index: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        config = self.config
        count = config.num_decoder_layers if self.causal else config.num_layers
        # One table, which all blocks add to their scores.
        bias = nn.Embed(config.buckets, config.num_heads, dtype=jnp.float32, name="relative")(
            position_bucket(config, distance, causal=self.causal)
        )
        shared = {
            "bias": jnp.moveaxis(bias, -1, 0)[None],
            "mask": mask,
            "source": source,
            "source_mask": source_mask,
            "index": index,
        }
        fields = (config, self.causal, self.dtype)
        x, past = through_layers(self, _Block, fields, count, x, shared, past=past, keep=True)
        return nn.RMSNorm(epsilon=config.norm_eps, dtype=self.dtype, name="norm")(x), past


class _Block(nn.Module):
    config: T5Config
    causal: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Array, shared: dict[str, Any], *past: Array
    ) -> tuple[Array, tuple[Array, ...]]:
        config = self.config
        norm = functools.partial(nn.RMSNorm, epsilon=config.norm_eps, dtype=self.dtype)
        x = mark_input(x)
        y, across = norm(name="attn_norm")(x), past[2:]
        y, own = _Attention(config, self.dtype, name="attn")(
            y, y, shared["mask"], shared["bias"], past[:2], shared["index"]
        )
        x = x + y

        if self.causal:
            y = norm(name="cross_norm")(x)
            y, across = _Attention(config, self.dtype, name="cross")(
                y, shared["source"], shared["source_mask"], None, across, None
            )
            x = x + y

        x = x + Mlp(config, self.dtype, name="mlp")(norm(name="mlp_norm")(x))
        return x, (*own, *across) if past else ()


class _Attention(nn.Module):
    """Attention without a scale. Keys and values are of `source`, or without it of `past`."""

    config: T5Config
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Array,
        source: Array | None,
        mask: Array,
        bias: Array | None,
        past: tuple[Array, ...],
        index: Array | None,
    ) -> tuple[Array, tuple[Array, Array]]:
        config = self.config
        heads, dim = config.num_heads, config.head_dim
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)

        def split(name: str, of: Array) -> Array:
            y = kept(dense(heads * dim, name=name)(of))
            return y.reshape(*y.shape[:-1], heads, dim)

        q = split("q", x)
        k, v = past if source is None else (split("k", source), split("v", source))
        if index is not None:
            write = lambda slots, new: jax.lax.dynamic_update_slice_in_dim(
                slots, new.astype(slots.dtype), index, 1
            )
            k, v = write(past[0], k), write(past[1], v)

        y = attend(q, k, v, scale=1.0, bias=bias, mask=mask)
        y = kept(y.reshape(*x.shape[:-1], heads * dim))
        return kept(dense(config.hidden_size, name="o")(y)), (k, v)


def _same(asking: Array, asked: Array) -> Bool[Array, "batch asking asked"]:
    """Who sees whom: real tokens of one segment."""
    return (asking[:, :, None] == asked[:, None, :]) & (asked > 0)[:, None, :]


def _distance(time: int) -> Int[np.ndarray, "time time"]:
    """Key less query, for all pairs."""
    return np.arange(time)[None] - np.arange(time)[:, None]
