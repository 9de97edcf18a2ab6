"""Log-probabilities of chosen tokens under a decoder: the head runs on these alone, a chunk of
positions at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lora_jax.adapters.apply import apply
from lora_jax.adapters.head import frozen_head
from lora_jax.models.decoder import Decoder
from lora_jax.models.t5 import T5

_CHUNK = 64  # positions whose logits are alive at a time


class TokenScores(NamedTuple):
    """Of every row of a batch: the sum of log-probabilities (nats), how many tokens were scored,
    and how many were the likeliest.
    """

    log_probability: Float[np.ndarray, " rows"]
    tokens: Int[np.ndarray, " rows"]
    likeliest: Int[np.ndarray, " rows"]


def score_tokens(
    model: Decoder,
    frozen: Mapping[str, Any],
    trainable: Mapping[str, Any],
    tokens: Int[np.ndarray, "rows time"],
    mask: Bool[np.ndarray, "rows time"],
    labels: Int[np.ndarray, "rows time"],
    counted: Bool[np.ndarray, "rows time"],
) -> TokenScores:
    """Scores `labels` (each position's next token) where `counted`; `mask` is True on real
    tokens.
    """
    return score_labels(model, frozen, trainable, (tokens, mask.astype(np.int32)), labels, counted)


def score_labels(
    model: Decoder | T5,
    frozen: Mapping[str, Any],
    trainable: Mapping[str, Any],
    inputs: tuple[Any, ...],
    labels: Int[np.ndarray, "rows time"],
    counted: Bool[np.ndarray, "rows time"],
) -> TokenScores:
    """Scores `labels` (each position's next token) where `counted`; `inputs` are those of the
    model's `hidden`.

    Programs are compiled once for each shape of the batch and each number of chunks, rounded up to
    a power of two.
    """
    rows, columns = np.nonzero(counted)
    chunks = 1 << (max(-(-len(rows) // _CHUNK), 1) - 1).bit_length()
    places = np.zeros((3, chunks * _CHUNK), np.int32)
    places[:, : len(rows)] = rows, columns, labels[rows, columns]
    step = _program(model)
    log_probability, right = jax.device_get(
        step(frozen, trainable, inputs, places.reshape(3, chunks, _CHUNK))
    )
    sums = lambda values: np.bincount(
        rows, values.reshape(-1)[: len(rows)].astype(float), len(labels)
    )
    return TokenScores(
        sums(log_probability),
        np.bincount(rows, minlength=len(labels)),
        sums(right).round().astype(int),
    )


@functools.lru_cache(maxsize=4)
def _program(model: Decoder | T5) -> Any:
    return jax.jit(functools.partial(_scores, model))


def _scores(
    model: Decoder | T5, frozen: Any, trainable: Any, inputs: tuple[Array, ...], places: Array
) -> tuple[Array, Array]:
    hidden, _ = apply(model, frozen, trainable, *inputs, method="hidden")
    words = frozen_head(model, frozen, trainable)
    if words is not None:
        row, column, label = places.reshape(3, -1)
        loss, right = words.word_losses(hidden[row, column], label)
        return -loss, right

    def chunk(place: Array) -> tuple[Array, Array]:
        row, column, label = place
        logits = apply(model, frozen, trainable, hidden[row, column], method="logits").astype(
            jnp.float32
        )
        picked = jnp.take_along_axis(logits, label[:, None], -1)[:, 0]
        return picked - jax.nn.logsumexp(logits, -1), logits.argmax(-1) == label

    return jax.lax.map(chunk, jnp.swapaxes(places, 0, 1))


def score_continuations(
    model: Decoder,
    frozen: Mapping[str, Any],
    trainable: Mapping[str, Any],
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int = 16,
    window: int | None = None,
    pad_id: int = 0,
    multiple: int = 32,
) -> list[tuple[float, bool]]:
    """(log-probability, whether greedy decoding would give it) of each continuation after its
    context, both token ids.

    Requests are sorted by length into batches of one size and padded to a multiple, so that few
    programs are compiled. Contexts lose tokens at their start where they and the continuation are
    longer than the window (by default the model's).

    Raises:
        ValueError: a context or a continuation is empty, or a continuation does not fit the window.
    """
    window = model.config.max_positions if window is None else window
    for context, continuation in requests:
        if not len(context) or not len(continuation) or len(continuation) > window:
            raise ValueError(
                f"A continuation needs 1 to {window} tokens and a context before it, got "
                f"{len(continuation)} after {len(context)}. "
                "Begin an empty context with the model's bos token."
            )
    order = sorted(
        range(len(requests)),
        key=lambda n: -min(len(requests[n][0]) + len(requests[n][1]), window + 1),
    )
    out: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        whole = [(list(requests[n][0]) + list(requests[n][1]))[-(window + 1) :] for n in members]
        longest = min(-(-(max(map(len, whole)) - 1) // multiple) * multiple, window)
        tokens, labels = (np.full((batch_size, longest), pad_id, np.int32) for _ in range(2))
        mask, counted = (np.zeros((batch_size, longest), bool) for _ in range(2))
        for row, (n, ids) in enumerate(zip(members, whole)):
            size = len(ids) - 1
            tokens[row, :size], labels[row, :size], mask[row, :size] = ids[:-1], ids[1:], True
            counted[row, size - len(requests[n][1]) : size] = True
        mask[len(members) :, 0] = True  # Rows that fill up the batch attend to something.
        scores = score_tokens(model, frozen, trainable, tokens, mask, labels, counted)
        for row, n in enumerate(members):
            out[n] = (
                float(scores.log_probability[row]),
                int(scores.likeliest[row]) == len(requests[n][1]),
            )
    return out
