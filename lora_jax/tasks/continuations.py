"""Log-probabilities of continuations under a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lora_jax.generation.engine import check_ids
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
        ValueError: a context or a continuation is empty, has an id that the vocabulary has not, or
            does not fit the window.
    """
    step = row_losses(TokenLosses(model))
    window = model.config.max_positions if window is None else window
    for context, continuation in requests:
        if not len(context) or not len(continuation) or len(continuation) > window:
            raise ValueError(
                f"A continuation needs 1 to {window} tokens and a context before it, got "
                f"{len(continuation)} after {len(context)}. Begin an empty context with the "
                "model's bos token."
            )
        check_ids([context, continuation], model.config.vocab_size)

    # A token more than the window: the last one is predicted and never read.
    texts = [[*context, *continuation][-(window + 1) :] for context, continuation in requests]
    order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
    out: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        longest = min(-(-(len(texts[members[0]]) - 1) // multiple) * multiple, window)
        tokens, labels = (np.full((batch_size, longest), pad_id, np.int32) for _ in range(2))
        mask, counted = (np.zeros((batch_size, longest), bool) for _ in range(2))
        for row, n in enumerate(members):
            size = len(texts[n]) - 1
            tokens[row, :size], labels[row, :size] = texts[n][:-1], texts[n][1:]
            mask[row, :size], counted[row, size - len(requests[n][1]) : size] = True, True
        mask[len(members) :, 0] = True  # Rows that fill up the batch attend to something.

        batch = dict(tokens=tokens, segments=mask.astype(np.int32), labels=labels)
        batch["loss_weight"] = counted.astype(np.float32)
        scores = jax.device_get(step(frozen, dict(trainable), batch))
        for row, n in enumerate(members):
            is_greedy = round(float(scores["correct"][row])) == len(requests[n][1])
            out[n] = -float(scores["loss"][row]), is_greedy
    return out
