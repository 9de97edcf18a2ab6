"""Token ids of a split as each head of an encoder reads them, unpadded, and their padded arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

NO_LABEL = -1  # a token that has no tag, or a span that is not in the window


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of one split, unpadded, in the order of its records.

    `tokens[i]` and `types[i]` (segment ids: 0 first text, 1 second) have equal lengths, special
    tokens counted. `truncated` counts the examples that lost tokens to `max_length`. `fingerprint`
    is the tokenizer's.
    """

    tokens: list[Int[np.ndarray, ...]]
    types: list[Int[np.ndarray, ...]]
    labels: Any  # class ids or scores, one an example; other heads have others
    max_length: int
    pad_id: int
    truncated: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def lengths(self) -> Int[np.ndarray, " examples"]:
        """Tokens of each example, special tokens counted."""
        return np.fromiter((len(tokens) for tokens in self.tokens), np.int32, len(self.tokens))

    def label_bytes(self) -> bytes:
        """All labels, for fingerprints."""
        return np.ascontiguousarray(self.labels).tobytes()

    def arrays(self, rows: Int[np.ndarray, " batch"], length: int) -> dict[str, np.ndarray]:
        """tokens, types, mask and labels of the examples at `rows`, padded to `length` with the
        tokenizer's padding id.
        """
        tokens, types, mask = pad_rows(
            [self.tokens[row] for row in rows],
            [self.types[row] for row in rows],
            length,
            self.pad_id,
        )
        return dict(tokens=tokens, types=types, mask=mask, labels=np.asarray(self.labels)[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTags(Encoded):
    """Words with tags. `labels` are arrays, one an example: a tag's id at the first token of its
    word, else NO_LABEL.
    """

    def label_bytes(self) -> bytes:
        """As `Encoded.label_bytes`."""
        return np.concatenate(self.labels).tobytes()

    def arrays(self, rows: Int[np.ndarray, " batch"], length: int) -> dict[str, np.ndarray]:
        """As `Encoded.arrays`, with labels (batch, time)."""
        tokens, types, mask = pad_rows(
            [self.tokens[row] for row in rows],
            [self.types[row] for row in rows],
            length,
            self.pad_id,
        )
        labels = np.full(tokens.shape, NO_LABEL, np.int32)
        for n, row in enumerate(rows):
            labels[n, : len(self.labels[row])] = self.labels[row]
        return dict(tokens=tokens, types=types, mask=mask, labels=labels)


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedSpans(Encoded):
    """Questions on contexts. `labels` (examples, 2) are the first and last token of the answer,
    NO_LABEL if it was cut off.

    `offsets[i]` (tokens, 2) are where each token of the context begins and ends in it, -1 for the
    question's.
    """

    offsets: tuple[np.ndarray, ...] = ()

    def arrays(self, rows: Int[np.ndarray, " batch"], length: int) -> dict[str, np.ndarray]:
        """As `Encoded.arrays`, with `allowed` (batch, time): True on tokens of the context, which
        alone can begin or end an answer.
        """
        allowed = np.zeros((len(rows), length), bool)
        for n, row in enumerate(rows):
            allowed[n, : len(self.offsets[row])] = self.offsets[row][:, 0] >= 0
        return super().arrays(rows, length) | dict(allowed=allowed)


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedChoices(Encoded):
    """A text for each choice. `tokens[i * choices + j]` is example i with choice j; `labels` are
    the right choices.
    """

    choices: int = 1

    def __len__(self) -> int:
        return len(self.tokens) // self.choices

    @cached_property
    def lengths(self) -> Int[np.ndarray, " examples"]:
        """Tokens of each example's longest choice."""
        return (
            np.fromiter(map(len, self.tokens), np.int32, len(self.tokens))
            .reshape(-1, self.choices)
            .max(1)
        )

    def arrays(self, rows: Int[np.ndarray, " batch"], length: int) -> dict[str, np.ndarray]:
        """As `Encoded.arrays`, with tokens, types and mask (batch, choices, time)."""
        texts = (rows[:, None] * self.choices + np.arange(self.choices)).reshape(-1)
        padded = pad_rows(
            [self.tokens[n] for n in texts], [self.types[n] for n in texts], length, self.pad_id
        )
        tokens, types, mask = (part.reshape(len(rows), self.choices, length) for part in padded)
        return dict(tokens=tokens, types=types, mask=mask, labels=np.asarray(self.labels)[rows])


def pad_rows(
    tokens: Sequence[np.ndarray], types: Sequence[np.ndarray], length: int, pad_id: int
) -> tuple[
    Int[np.ndarray, "rows time"], Int[np.ndarray, "rows time"], Bool[np.ndarray, "rows time"]
]:
    """Token ids, segment ids and the mask of real tokens, `length` long."""
    out, kinds = (
        np.full((len(tokens), length), pad_id, np.int32),
        np.zeros((len(tokens), length), np.int32),
    )
    for row, (ids, segments) in enumerate(zip(tokens, types, strict=True)):
        out[row, : len(ids)], kinds[row, : len(ids)] = ids, segments
    return out, kinds, np.arange(length) < np.array([len(ids) for ids in tokens])[:, None]
