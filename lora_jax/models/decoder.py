"""One decoder for many language models: GPT-2, GPT-NeoX, OPT, LLaMA, Mistral, Mixtral, Qwen, Phi-3,
Gemma, by configuration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.attention import attend
from lora_jax.models.decoder_config import ACTIVATIONS, DecoderConfig
from lora_jax.models.head import OutputHead
from lora_jax.models.layers import kept, mark_input, through_layers
from lora_jax.models.rotary import rotary_angles, rotate


class Cache(struct.PyTreeNode):
    """Keys and values of past tokens, in shapes that never change.

    `k`, `v`: (layers, batch, slots, kv_heads, head_dim); of a model without scan also one (batch,
    slots, kv_heads, head_dim) a layer, which are not copied into a stack at every step.
    `positions`: each slot's position in its text. `filled`: whether a slot holds a token. `index`:
    the slot that the next token goes to, the same for all rows (texts are padded on the left).
    """

    k: Float[Array, "layers batch slots kv dim"] | tuple[Float[Array, "batch slots kv dim"], ...]
    v: Float[Array, "layers batch slots kv dim"] | tuple[Float[Array, "batch slots kv dim"], ...]
    positions: Int[Array, "batch slots"]
    filled: Bool[Array, "batch slots"]
    index: Int[Array, ""]

    @property
    def batch_axis(self) -> int:
        """The axis of `k` and `v` that counts texts."""
        return 0 if isinstance(self.k, tuple) else 1

    def change_rows(self, change: Callable[[Array, int], Array]) -> Cache:
        """The cache with `change(array, axis of the texts)` for every array that has such an axis."""
        each = lambda tree, axis: jax.tree.map(lambda leaf: change(leaf, axis), tree)
        axis = self.batch_axis
        return self.replace(
            k=each(self.k, axis),
            v=each(self.v, axis),
            positions=each(self.positions, 0),
            filled=each(self.filled, 0),
        )


def empty_cache(
    config: DecoderConfig, batch: int, slots: int, dtype: Any = jnp.float32, *, scan: bool = True
) -> Cache:
    """A cache for `batch` texts of at most `slots` tokens, padding counted; without `scan`, an
    array a layer.
    """
    shape = (batch, slots, config.num_kv_heads, config.head_dim)
    zeros = lambda: (
        jnp.zeros((config.num_layers, *shape), dtype)
        if scan
        else tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))
    )
    return Cache(
        k=zeros(),
        v=zeros(),
        positions=jnp.zeros((batch, slots), jnp.int32),
        filled=jnp.zeros((batch, slots), bool),
        index=jnp.zeros((), jnp.int32),
    )


def positions_of(segments: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """Each token's position in its own segment; segments are runs of equal numbers."""
    index = jnp.arange(segments.shape[1])[None]
    new = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], 1
    )
    return index - jax.lax.cummax(jnp.where(new, index, 0), axis=1)


def last_positions(
    segments: Int[Array, "batch time"], positions: Int[Array, "batch time"]
) -> Int[Array, "batch time"]:
    """The position of the last token of each token's segment."""
    time = segments.shape[1]
    ends = jnp.concatenate(
        [segments[:, 1:] != segments[:, :-1], jnp.ones_like(segments[:, :1], bool)], 1
    )
    index = jnp.where(ends, jnp.arange(time)[None], time)
    return jnp.take_along_axis(positions, jax.lax.cummin(index, axis=1, reverse=True), 1)


class Decoder(nn.Module):
    """Tokens to logits of the next token.

    With `scan` the blocks are one `layers` with a leading layer axis and compile once, also where
    local and global layers alternate; without, they are `layers_0`, ... With `remat` a block is
    computed again in the backward pass instead of kept, with `offload` from an input that waits in
    host memory. Weights are float32 unless loaded otherwise, products in `dtype`, softmax and norms
    in float32.
    """

    writes_targets: ClassVar[bool] = False  # it continues its prompt

    config: DecoderConfig
    scan: bool = True
    remat: bool = False
    dtype: Any = jnp.float32
    offload: bool = False

    def setup(self) -> None:
        """The submodules; their names are the paths of the weights."""
        config = self.config
        embed = functools.partial(
            nn.Embed,
            features=config.hidden_size,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
        )
        self.embed = embed(config.vocab_size)
        if config.rotary is None:
            self.positions = embed(config.max_positions + config.position_offset)
        self.norm = _norm(config, self.dtype)
        if not config.tied:
            self.head = nn.Dense(config.vocab_size, use_bias=False, dtype=self.dtype)

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        segments: Int[Array, "batch time"] | None = None,
        positions: Int[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch time vocab"]:
        """Logits of each token's successor.

        Args:
            segments: texts packed into a row are told apart by numbers from 1; 0 is padding. A mask
                of 0 and 1 is a case of it.
            positions: by default each token's place in its own segment.
        """
        return self.logits(self.hidden(tokens, segments, positions)[0])

    def decode(
        self,
        tokens: Int[Array, "batch time"],
        cache: Cache,
        mask: Bool[Array, "batch time"] | None = None,
    ) -> tuple[Float[Array, "batch time vocab"], Cache]:
        """Logits after more tokens of texts whose past is in `cache`, and the cache with these
        tokens in it.

        The caller sees to it that the cache has room: slots past its end would overwrite its last
        ones. A text that grows beyond `config.switch_length` has to begin anew with an empty cache,
        since its whole past changes.

        Args:
            mask: False on padding, which stands at the left of the first call.
        """
        x, cache = self.hidden(tokens, mask, cache=cache)
        return self.logits(x), cache

    @nn.compact
    def hidden(
        self,
        tokens: Int[Array, "batch time"],
        segments: Int[Array, "batch time"] | Bool[Array, "batch time"] | None = None,
        positions: Int[Array, "batch time"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "batch time hidden"], Cache | None]:
        """The normalised hidden states that `logits` takes, and the cache with these tokens."""
        config = self.config
        segments = jnp.ones_like(tokens) if segments is None else segments.astype(jnp.int32)
        if positions is None:
            positions = positions_of(segments)
            if cache is not None:  # A text goes on after what the cache holds of it.
                positions = jnp.maximum(
                    jnp.cumsum(segments > 0, axis=1) - 1 + cache.filled.sum(1, keepdims=True), 0
                )
        x = self.embed(tokens)
        if config.embedding_scale is not None:
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        if config.rotary is None:
            x = x + self.positions(positions + config.position_offset)

        cache, mask, local_mask = _masks(config, segments, positions, cache)
        last = last_positions(segments, positions)
        angles_of = lambda rotary: (
            None if rotary is None else rotary_angles(rotary, config.head_dim, positions, last)
        )
        shared = {
            "mask": mask,
            "local_mask": local_mask,
            "angles": angles_of(config.rotary),
            "local_angles": angles_of(config.local_rotary),
            "index": None if cache is None else cache.index - tokens.shape[1],
        }

        x, made = through_layers(
            self,
            Block,
            (config, self.dtype),
            config.num_layers,
            x,
            shared,
            each=(np.asarray(config.locality),),
            past=() if cache is None else (cache.k, cache.v),
            keep=True,
        )
        if cache is not None:
            cache = cache.replace(k=made[0], v=made[1])
        return self.norm(x), cache

    @property
    def output_head(self) -> OutputHead:
        """What `logits` computes, for losses that take the vocabulary in blocks."""
        cap = self.config.final_softcap
        return (
            OutputHead("embed", "embedding", 0, softcap=cap)
            if self.config.tied
            else OutputHead("head", "kernel", 1, softcap=cap)
        )

    def logits(self, x: Float[Array, "*batch hidden"]) -> Float[Array, "*batch vocab"]:
        """Logits of hidden states, soft-capped if the configuration says so."""
        y = self.embed.attend(x) if self.config.tied else self.head(x)
        return _softcap(y, self.config.final_softcap)


class Block(nn.Module):
    """Self-attention and an MLP, each added to its input."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time hidden"], shared: dict[str, Any], local: Any, *past: Array
    ) -> tuple[Array, tuple[Array, ...]]:
        """The block's output, and its keys and values if there is a cache."""
        config = self.config
        norm = functools.partial(_norm, config, self.dtype)
        after = lambda name, y: norm(name=name)(y) if config.post_norms else y
        kind = Mlp if config.experts is None else ExpertsMlp
        x = mark_input(x)
        y, past = Attention(config, self.dtype, name="attn")(
            norm(name="attn_norm")(x), shared, local, past
        )
        y = x + after("attn_post_norm", y)

        read = x if config.parallel else y
        mixed = kind(config, self.dtype, name="mlp")(norm(name="mlp_norm")(read))
        return y + after("mlp_post_norm", mixed), past


class Attention(nn.Module):
    """Causal self-attention; several query heads may share a key and value head."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time hidden"],
        shared: dict[str, Any],
        local: Any,
        past: tuple[Array, ...],
    ) -> tuple[Array, tuple[Array, ...]]:
        """The attended values, and the keys and values of all slots if there is a cache."""
        config = self.config
        heads, kv, dim = config.num_heads, config.num_kv_heads, config.head_dim
        dense = functools.partial(nn.Dense, dtype=self.dtype, use_bias=config.qkv_bias)
        split = lambda name, n: kept(dense(n * dim, name=name)(x)).reshape(*x.shape[:-1], n, dim)
        q, k, v = split("q", heads), split("k", kv), split("v", kv)
        if config.qk_norm:
            norm = functools.partial(nn.RMSNorm, epsilon=config.norm_eps, dtype=self.dtype)
            q, k = norm(name="q_norm")(q), norm(name="k_norm")(k)
        angles = _choose(local, shared["local_angles"], shared["angles"])
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)

        if past:
            write = lambda slots, new: jax.lax.dynamic_update_slice_in_dim(
                slots, new.astype(slots.dtype), shared["index"], 1
            )
            k, v = past = (write(past[0], k), write(past[1], v))
        scale = dim**-0.5 if config.query_scale is None else config.query_scale
        mask = _choose(local, shared["local_mask"], shared["mask"])
        y = attend(q, k, v, scale=scale, mask=mask, softcap=config.attention_softcap)
        y = kept(y.reshape(*x.shape[:-1], heads * dim))
        out = nn.Dense(config.hidden_size, use_bias=config.out_bias, dtype=self.dtype, name="o")
        return kept(out(y)), past


class Mlp(nn.Module):
    """`down(act(up(x)))`, or gated `down(act(gate(x)) * up(x))` (Shazeer 2020, arXiv
    2002.05202).
    """

    config: DecoderConfig
    dtype: Any
    size: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        """The MLP's output."""
        config = self.config
        dense = functools.partial(nn.Dense, use_bias=config.mlp_bias, dtype=self.dtype)
        size, act = self.size or config.intermediate_size, ACTIVATIONS[config.activation]
        y = kept(dense(size, name="up")(x))
        y = act(kept(dense(size, name="gate")(x))) * y if config.gated else act(y)
        return kept(dense(config.hidden_size, name="down")(y))


class ExpertsMlp(nn.Module):
    """A mixture of MLPs; a router picks a few for each token (Shazeer et al. 2017; Mixtral, Jiang
    et al. 2024).

    Every expert computes every token and the router's weights, mostly 0, add them up: exact,
    without a capacity, in static shapes, at count / per_token times the products that are needed.
    Experts run one after the other, so one is alive at a time.
    """

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        """The weighted sum of the chosen experts' outputs."""
        config, experts = self.config, self.config.experts
        logits = nn.Dense(experts.count, use_bias=False, dtype=self.dtype, name="router")(x)
        shares = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        top, chosen = jax.lax.top_k(shares, experts.per_token)
        if experts.normalise:
            top = top / top.sum(-1, keepdims=True)
        weights = (jax.nn.one_hot(chosen, experts.count) * top[..., None]).sum(-2)

        each = nn.scan(
            _Expert,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=experts.count,
        )
        y, _ = each(config, self.dtype, name="experts")(
            jnp.zeros_like(x), x, jnp.moveaxis(weights.astype(self.dtype), -1, 0)
        )
        if experts.shared_size is not None:
            gate = nn.Dense(1, use_bias=False, dtype=self.dtype, name="shared_gate")(x)
            shared = Mlp(config, self.dtype, experts.shared_size, name="shared")
            y = y + nn.sigmoid(gate) * shared(x)
        return y


class _Expert(nn.Module):
    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, total: Array, x: Array, weight: Array) -> tuple[Array, None]:
        config = self.config
        dense = functools.partial(nn.Dense, use_bias=config.mlp_bias, dtype=self.dtype)
        size = config.experts.intermediate_size
        y = ACTIVATIONS[config.activation](kept(dense(size, name="gate")(x))) * kept(
            dense(size, name="up")(x)
        )
        return total + weight[..., None] * dense(config.hidden_size, name="down")(y), None


def _norm(config: DecoderConfig, dtype: Any, name: str | None = None) -> nn.Module:
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(epsilon=config.norm_eps, dtype=dtype, name=name)


def _softcap(x: Array, cap: float | None) -> Array:
    return x if cap is None else cap * jnp.tanh(x / cap)


def _choose(local: Any, if_local: Any, if_not: Any) -> Any:
    """One of two trees, the second where local layers have none of their own."""
    if if_local is None:
        return if_not
    return jax.tree.map(functools.partial(jnp.where, local), if_local, if_not)


def _masks(
    config: DecoderConfig, segments: Array, positions: Array, cache: Cache | None
) -> tuple[Cache | None, Bool[Array, "batch time slots"], Bool[Array, "batch time slots"] | None]:
    """The cache with this call's slots marked, and who sees whom in global and in local layers
    (None if no layer is local).
    """
    if cache is None:
        index = jnp.arange(segments.shape[1])
        seen = (
            (segments[:, :, None] == segments[:, None, :])
            & (segments > 0)[:, None, :]
            & (index[:, None] >= index[None, :])
        )
        key_positions = positions
    else:
        start = cache.index
        filled = jax.lax.dynamic_update_slice_in_dim(cache.filled, segments > 0, start, 1)
        key_positions = jax.lax.dynamic_update_slice_in_dim(
            cache.positions, positions.astype(jnp.int32), start, 1
        )
        cache = cache.replace(
            filled=filled, positions=key_positions, index=start + segments.shape[1]
        )
        slots, mine = jnp.arange(filled.shape[1]), start + jnp.arange(segments.shape[1])
        seen = filled[:, None, :] & (slots[None, :] <= mine[:, None])[None]

    if config.window is None:
        return cache, seen, None
    near = positions[:, :, None] - key_positions[:, None, :] < config.window
    return cache, seen, seen & near
