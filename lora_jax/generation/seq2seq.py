"""Tokens from an encoder-decoder, whose source is encoded once and kept as keys and values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lora_jax.adapters.apply import apply
from lora_jax.generation.engine import GenerationState, Generator, PerText
from lora_jax.models.decoder import Decoder
from lora_jax.models.t5 import T5, T5Cache

# A text with an adapter of its own is a batch of one: these axes are its place in the batch.
_AXES = T5Cache(k=1, v=1, cross_k=1, cross_v=1, source=0, index=None)


class PairGenerator(Generator):
    """Writes targets for source token ids; as `Generator`, whose prompts are the sources. A source
    ends with its end token.
    """

    model: T5

    def forward(
        self, frozen: Any, trainable: Any, tokens: Array, mask: Array, cache: T5Cache
    ) -> tuple[Array, T5Cache]:
        """Logits of the last token's successor, and the cache; `trainable` may be `PerText`."""
        del mask  # Texts that have ended go on unread: no other text sees them.

        def run(trainable: Any, tokens: Array, cache: T5Cache) -> tuple[Array, T5Cache]:
            return apply(self.model, frozen, trainable, tokens, cache, method="step")

        if not isinstance(trainable, PerText):
            return run(trainable, tokens, cache)

        def one(trainable: Any, tokens: Array, cache: T5Cache) -> tuple[Array, T5Cache]:
            return _without_row(*run(trainable, tokens[None], _with_row(cache)))

        every = jax.vmap(one, in_axes=(0, 0, _AXES), out_axes=(0, _AXES))
        return every(trainable.trainable, tokens, cache)

    def _start_fn(
        self,
        frozen: Any,
        trainable: Any,
        tokens: Array,
        mask: Array,
        keys: jax.Array,
        *,
        slots: int,
        new: int,
    ) -> GenerationState:
        batch, config = tokens.shape[0], self.model.config

        def run(trainable: Any, tokens: Array, mask: Array) -> tuple[Array, T5Cache]:
            # The start token takes a slot, and the last token that is made needs none.
            return apply(self.model, frozen, trainable, tokens, mask, new + 1, method="start")

        def one(trainable: Any, tokens: Array, mask: Array) -> tuple[Array, T5Cache]:
            return _without_row(*run(trainable, tokens[None], mask[None]))

        if isinstance(trainable, PerText):
            every = jax.vmap(one, out_axes=(0, _AXES))
            logits, cache = every(trainable.trainable, tokens, mask)
        else:
            logits, cache = run(trainable, tokens, mask)
        seen = jnp.zeros((batch, config.vocab_size), bool).at[:, config.start_id].set(True)
        return self._begun(cache, logits, seen, keys, new)


def generator_for(model: Decoder | T5) -> type[Generator]:
    """The class that continues texts with a decoder, or writes targets with an encoder-decoder."""
    return PairGenerator if model.writes_targets else Generator


def _with_row(cache: T5Cache) -> T5Cache:
    add = lambda leaf: leaf[:, None]
    return cache.replace(
        k=add(cache.k),
        v=add(cache.v),
        cross_k=add(cache.cross_k),
        cross_v=add(cache.cross_v),
        source=cache.source[None],
    )


def _without_row(logits: Array, cache: T5Cache) -> tuple[Array, T5Cache]:
    drop = lambda leaf: leaf[:, 0]
    rows = {name: drop(getattr(cache, name)) for name in ("k", "v", "cross_k", "cross_v")}
    return logits[0], cache.replace(source=cache.source[0], **rows)
