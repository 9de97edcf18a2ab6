"""Log-probabilities of continuations under a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lora_jax.models.decoder import Decoder
from lora_jax.tasks.language_loss import TokenLosses
from lora_jax.tasks.predictions import row_losses


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
    step = row_losses(TokenLosses(model))
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
        batch = dict(tokens=tokens, segments=mask.astype(np.int32), labels=labels)
        batch["loss_weight"] = counted.astype(np.float32)
        scores = jax.device_get(step(frozen, dict(trainable), batch))
        for row, n in enumerate(members):
            out[n] = (
                -float(scores["loss"][row]),
                round(float(scores["correct"][row])) == len(requests[n][1]),
            )
    return out
