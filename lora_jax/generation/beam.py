"""Beam search as the LoRA paper's decoder does it; BLEU depends on its details.

That is microsoft/LoRA, examples/NLG/src/gpt2_beam.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lora_jax.adapters.apply import apply
from lora_jax.generation.engine import check_ids, left_padded
from lora_jax.generation.sampling import block_repeated_ngrams, penalise_repetition
from lora_jax.models.decoder import Cache, Decoder, empty_cache

_DEAD = -1e9


@dataclass(frozen=True)
class BeamSearch:
    """Settings; the defaults are those of the paper's E2E experiments.

    beams: texts kept.
    length_penalty: a finished text scores sum(log p) / length ** this, length without the prompt.
    no_repeat_ngram: n-grams of generated tokens that may not come twice; 0 for none.
    repetition_penalty: as of `Sampling`, of generated tokens.
    min_length: no end token before.
    """

    beams: int = 10
    length_penalty: float = 0.8
    no_repeat_ngram: int = 4
    repetition_penalty: float = 1.0
    min_length: int = 0

    def __post_init__(self) -> None:
        if (
            self.beams < 1
            or self.no_repeat_ngram < 0
            or self.no_repeat_ngram == 1
            or self.repetition_penalty <= 0
            or self.min_length < 0
        ):
            raise ValueError(
                "Needed beams from 1, no_repeat_ngram 0 or from 2, repetition_penalty above 0, "
                f"min_length from 0; got {self}."
            )


def beam_search(
    model: Decoder,
    frozen: Mapping[str, Any],
    trainable: Mapping[str, Any],
    prompt: Sequence[int],
    *,
    max_new: int,
    eos_ids: Sequence[int],
    search: BeamSearch = BeamSearch(),
) -> tuple[list[int], float]:
    """The best continuation of a prompt, end token left out, and its score.

    All beams are extended by every word, the best `beams` of the beams * vocab texts remain. One
    that ends is scored, kept if it beats the best so far, and its beam is dead; there is no early
    stop. Texts that have not ended after `max_new` tokens compete at the end, by the same score.

    Raises:
        ValueError: there is no end token, or prompt and new tokens are longer than the model's
            window.
    """
    if not eos_ids:
        raise ValueError("Beam search needs at least one end token; give eos_ids.")
    if not prompt or max_new < 1 or len(prompt) + max_new > model.config.max_positions:
        raise ValueError(
            f"A prompt of {len(prompt)} tokens and {max_new} new ones must be at least 1 each and "
            "fit the window of "
            f"{model.config.max_positions}. Shorten the prompt, or lower max_new."
        )
    check_ids([prompt, eos_ids], model.config.vocab_size)
    start = jax.jit(_start, static_argnames=("model", "new", "beams"))
    step = jax.jit(_step, static_argnames=("model", "search", "eos_ids"))

    def read(texts: Sequence[Sequence[int]]) -> tuple[Array, Cache]:
        arrays = map(jnp.asarray, left_padded(texts, 0, 16))
        return start(model, frozen, trainable, *arrays, new=max_new, beams=search.beams)

    logits, cache = read([prompt])
    # At first all beams are the same text: only one of them may be extended.
    scores = jnp.full(search.beams, _DEAD).at[0].set(0.0)
    made = jnp.zeros((search.beams, max_new), jnp.int32)
    best: tuple[float, list[int]] = (-np.inf, [])
    for count in range(max_new):
        n = jnp.int32(count)
        scores, made, token, cache, logits = step(
            model,
            frozen,
            trainable,
            scores,
            made,
            logits,
            cache,
            n,
            search=search,
            eos_ids=tuple(eos_ids),
        )
        host_scores, host_tokens = np.asarray(scores, np.float64), np.asarray(token)
        for beam in np.flatnonzero(np.isin(host_tokens, eos_ids) & (host_scores > _DEAD / 2)):
            score = float(host_scores[beam]) / (count + 1) ** search.length_penalty
            if score > best[0]:
                best = (score, np.asarray(made[beam, :count]).tolist())

        scores = jnp.where(jnp.isin(token, jnp.asarray(eos_ids)), _DEAD, scores)
        if not (np.asarray(scores) > _DEAD / 2).any():
            break
        if len(prompt) + count == model.config.switch_length:
            # The texts are a token longer than what their past was computed for.
            logits, cache = read([[*prompt, *row[: count + 1]] for row in np.asarray(made)])
    else:
        for beam, score in enumerate(
            np.asarray(scores, np.float64) / max_new**search.length_penalty
        ):
            if score > best[0] and float(scores[beam]) > _DEAD / 2:
                best = (float(score), np.asarray(made[beam]).tolist())
    return best[1], best[0]


def _start(
    model: Decoder,
    frozen: Any,
    trainable: Any,
    tokens: Int[Array, "texts time"],
    mask: Array,
    *,
    new: int,
    beams: int,
) -> tuple[Array, Cache]:
    """Logits and cache after one text for all beams, or after a text for each."""
    texts, time = tokens.shape
    cache = empty_cache(model.config, texts, time + new, model.dtype, scan=model.scan)
    x, cache = apply(model, frozen, trainable, tokens, mask, cache=cache, method="hidden")
    logits = apply(model, frozen, trainable, x[:, -1], method="logits")
    rows = jnp.arange(beams) % texts
    return logits[rows], _rows(cache, rows)


def _step(
    model: Decoder,
    frozen: Any,
    trainable: Any,
    scores: Float[Array, " beams"],
    made: Int[Array, "beams new"],
    logits: Float[Array, "beams vocab"],
    cache: Cache,
    count: Int[Array, ""],
    *,
    search: BeamSearch,
    eos_ids: tuple[int, ...],
) -> tuple[Array, Array, Array, Cache, Array]:
    """Every beam extended by a token: scores, tokens made, last tokens, cache and logits after."""
    logits = logits.astype(jnp.float32)
    vocab = logits.shape[-1]
    if search.repetition_penalty != 1.0:
        rows, index = jnp.arange(len(made))[:, None], jnp.arange(made.shape[1])[None]
        seen = (
            jnp.zeros(logits.shape, bool)
            .at[rows, jnp.where(index < count, made, vocab)]
            .set(True, mode="drop")
        )
        logits = penalise_repetition(logits, seen, search.repetition_penalty)
    if search.min_length:
        logits = jnp.where(
            count < search.min_length, logits.at[:, jnp.asarray(eos_ids)].set(-jnp.inf), logits
        )
    if search.no_repeat_ngram:
        logits = block_repeated_ngrams(logits, made, count, search.no_repeat_ngram)

    # Tokens are blocked before the softmax, as there: the others share their probability.
    total = jnp.maximum(scores[:, None] + jax.nn.log_softmax(logits, -1), 2 * _DEAD)
    top, flat = jax.lax.top_k(total.reshape(-1), len(scores))
    beam, token = flat // vocab, (flat % vocab).astype(jnp.int32)
    made = jax.lax.dynamic_update_slice(made[beam], token[:, None], (0, count))
    x, cache = apply(
        model,
        frozen,
        trainable,
        token[:, None],
        jnp.ones((len(scores), 1), bool),
        cache=_rows(cache, beam),
        method="hidden",
    )
    return top, made, token, cache, apply(model, frozen, trainable, x[:, -1], method="logits")


def _rows(cache: Cache, rows: Int[Array, " beams"]) -> Cache:
    return cache.change_rows(lambda array, axis: jnp.take(array, rows, axis=axis))
