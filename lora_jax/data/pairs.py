"""Prompts and completions as an encoder-decoder reads them: a source, and a target that begins with
a start token.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int

from .completions import Completions, EncodedCompletions, group_numbers
from .text_tokenizers import TextTokenizer
from .token_packing import PackedBatches, PlannedRows, pack


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPairs(EncodedCompletions):
    """Token ids of a split: the first `prompt_lengths[i]` of `tokens[i]` are the source, the others
    the target.
    """

    start_id: int = 0


class PairBatch(TypedDict):
    """One batch of rows. `segments` and `target_segments` number the examples of a row from 1
    alike, 0 is padding.

    `target` are the decoder's inputs, the start token and all but the last of the target, `labels`
    the target; `loss_weight` is 1 on it. `mask` (rows, source + target) is True on real tokens,
    `weight` 1 on rows with any.
    """

    tokens: Int[np.ndarray, "rows source"]
    segments: Int[np.ndarray, "rows source"]
    target: Int[np.ndarray, "rows target"]
    target_segments: Int[np.ndarray, "rows target"]
    labels: Int[np.ndarray, "rows target"]
    loss_weight: Float[np.ndarray, "rows target"]
    mask: Bool[np.ndarray, "rows both"]
    weight: Float[np.ndarray, " rows"]


def encode_pairs(
    records: Completions,
    tokenizer: TextTokenizer,
    max_length: int,
    *,
    start_id: int = 0,
    temperature: float = 1.0,
) -> EncodedPairs:
    """Token ids of every example: prompt and eos, completion and eos, together at most
    `max_length`.

    An example that is too long loses tokens at the end of its prompt, before eos; then at the end
    of its completion.

    Raises:
        ValueError: the tokenizer has no end token.
    """
    if not tokenizer.eos_ids:
        raise ValueError(
            "An encoder-decoder needs a tokenizer with an end token, and this one has none. Give "
            "the model's own tokenizer."
        )

    eos = list(tokenizer.eos_ids[:1])
    tokens, lengths, truncated = [], [], 0
    for prompt, completion in zip(records.prompts, records.completions, strict=True):
        source, target = (
            tokenizer.encode(text.strip(), special=False) + eos for text in (prompt, completion)
        )
        if len(source) + len(target) > max_length:
            truncated += 1
            source = source[: max(max_length - len(target) - 1, 0)] + eos
            target = target[: max_length - len(source)]
        tokens.append(np.asarray(source + target, np.int32))
        lengths.append(len(source))

    groups = group_numbers(records.tasks)
    return EncodedPairs(
        tokens,
        np.asarray(lengths, np.int32),
        max_length,
        tokenizer.pad_id,
        truncated,
        groups,
        temperature,
        start_id,
    )


class PairBatches(PackedBatches):
    """The batches of encoded pairs; as `PackedBatches`. Rows are as long as the longest source and
    the longest target.
    """

    encoded: EncodedPairs

    def __init__(
        self, encoded: EncodedPairs, batch_size: int, *, length_multiple: int = 16, **options: Any
    ) -> None:
        self._sizes = (encoded.prompt_lengths, encoded.lengths - encoded.prompt_lengths)
        source, target = (
            -(-int(sizes.max(initial=1)) // length_multiple) * length_multiple
            for sizes in self._sizes
        )
        self.lengths = (source, target)
        super().__init__(encoded, batch_size, length=source + target, length_multiple=1, **options)

    def _pack(self, members: Int[np.ndarray, " examples"]) -> list[list[int]]:
        return pack(np.stack([sizes[members] for sizes in self._sizes], axis=1), self.lengths)

    def _make(self, planned: PlannedRows) -> PairBatch:
        encoded, shapes = self.encoded, [(planned.count, length) for length in self.lengths]
        tokens = np.full(shapes[0], encoded.pad_id, np.int32)
        segments, target = np.zeros_like(tokens), np.full(shapes[1], encoded.pad_id, np.int32)
        target_segments, labels = np.zeros(shapes[1], np.int32), np.zeros(shapes[1], np.int32)
        for row, members in enumerate(planned.rows):
            at, to = 0, 0
            for number, index in enumerate(members, 1):
                source, wanted = np.split(encoded.tokens[index], [encoded.prompt_lengths[index]])
                end, until = at + len(source), to + len(wanted)
                tokens[row, at:end], segments[row, at:end] = source, number
                target[row, to:until] = [encoded.start_id, *wanted[:-1]][: len(wanted)]
                target_segments[row, to:until], labels[row, to:until] = number, wanted
                at, to = end, until

        mask = np.concatenate([segments, target_segments], 1) > 0
        counted = (target_segments > 0).astype(np.float32)
        return PairBatch(
            tokens=tokens,
            segments=segments,
            target=target,
            target_segments=target_segments,
            labels=labels,
            loss_weight=counted,
            mask=mask,
            weight=mask.any(1).astype(np.float32),
        )
