"""From logits to the next token: the likeliest, or drawn after temperature, top-k and the like."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lora_jax.core.plain_types import check_types
from lora_jax.kernels.vocab_loss import likeliest

_NEVER = -jnp.inf


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, in this order; None, or 1 for the penalty, leaves a step out.

    repetition_penalty: logits of tokens that the text holds already are divided by it if above 0,
        else multiplied (Keskar et al. 2019, CTRL).
    temperature: divides the logits; 0 takes the likeliest token and ignores what follows here.
    top_k: tokens that remain.
    top_p: the likeliest tokens whose probabilities first reach this sum remain (Holtzman et al.
        2020).
    min_p: tokens at least this fraction of the likeliest one's probability remain (Nguyen et al.
        2024).
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        numbers = dict(top_k=Integral, top_p=Real, min_p=Real)
        given = {name: kind for name, kind in numbers.items() if getattr(self, name) is not None}
        check_types("", self, temperature=Real, repetition_penalty=Real, **given)
        limits = (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        )
        for name, holds, words in limits:
            if not holds:
                raise ValueError(f"{name} must be {words}, got {getattr(self, name)!r}.")


def choose(
    logits: Float[Array, "batch vocab"],
    seen: Bool[Array, "batch vocab"],
    keys: jax.Array,
    sampling: Sampling,
) -> Int[Array, " batch"]:
    """The next token of every text. `seen` marks the tokens that a text holds; `keys` has one
    random key a text.
    """
    logits = logits.astype(jnp.float32)
    if sampling.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return likeliest(logits)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def penalise_repetition(
    logits: Float[Array, "batch vocab"], seen: Bool[Array, "batch vocab"], penalty: float
) -> Float[Array, "batch vocab"]:
    """Logits with those of seen tokens moved down by the penalty."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Float[Array, "batch vocab"], k: int) -> Float[Array, "batch vocab"]:
    """The `k` largest logits (and any equal to the smallest of them), the rest at minus
    infinity.
    """
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < least, _NEVER, logits)


def keep_top_p(logits: Float[Array, "batch vocab"], p: float) -> Float[Array, "batch vocab"]:
    """The fewest tokens, likeliest first, whose probabilities add up to at least `p`; never
    none.
    """
    # Rising, and stable, as transformers sorts: ties fall the same way.
    order = jnp.argsort(logits, axis=-1)
    sorted_logits = jnp.take_along_axis(logits, order, -1)
    dropped = jnp.cumsum(jax.nn.softmax(sorted_logits, -1), -1) <= 1 - p
    dropped = dropped.at[..., -1].set(False)
    rows = jnp.arange(logits.shape[0])[:, None]
    return jnp.where(jnp.zeros_like(dropped).at[rows, order].set(dropped), _NEVER, logits)


def keep_min_p(logits: Float[Array, "batch vocab"], p: float) -> Float[Array, "batch vocab"]:
    """Tokens whose probability is at least `p` times the likeliest one's."""
    shares = jax.nn.softmax(logits, -1)
    return jnp.where(shares < p * shares.max(-1, keepdims=True), _NEVER, logits)


def block_repeated_ngrams(
    logits: Float[Array, "batch vocab"],
    tokens: Int[Array, "batch time"],
    length: Int[Array, ""] | int,
    size: int,
) -> Float[Array, "batch vocab"]:
    """Logits with every token at minus infinity that would repeat an n-gram of the first `length`
    of `tokens`.
    """
    time, vocab = tokens.shape[1], logits.shape[-1]
    # Of every n-gram, all tokens but the last.
    start = jnp.arange(time)[:, None] + jnp.arange(size - 1)[None]
    ends = jnp.arange(time) + size - 1
    last = length - (size - 1) + jnp.arange(size - 1)
    prefix = jnp.take_along_axis(tokens, jnp.clip(last, 0, time - 1)[None], 1)
    same = (
        (tokens[:, jnp.clip(start, 0, time - 1)] == prefix[:, None]).all(-1)
        & (ends < length)[None]
        & (length >= size - 1)
    )
    banned = jnp.where(same, tokens[:, jnp.clip(ends, 0, time - 1)], vocab)
    rows = jnp.arange(tokens.shape[0])[:, None]
    return logits.at[rows, banned].set(_NEVER, mode="drop")
