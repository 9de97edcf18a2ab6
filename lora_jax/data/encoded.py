"""Token ids of a split as each head of an encoder reads them, unpadded, and their padded arrays."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

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
        return np.fromiter(map(len, self.tokens), np.int32, len(self.tokens))

    def label_bytes(self) -> bytes:
        """All labels, for fingerprints."""
        return np.ascontiguousarray(self.labels).tobytes()

    def arrays(self, rows: Int[np.ndarray, " batch"], length: int) -> dict[str, np.ndarray]:
        """tokens, types, mask and labels of the examples at `rows`, padded to `length` with the
        tokenizer's padding id.
        """
        return self._padded(rows, length) | dict(labels=np.asarray(self.labels)[rows])

    def _padded(self, texts: Int[np.ndarray, " texts"], length: int) -> dict[str, np.ndarray]:
        """tokens, types and mask (texts, length) of the texts at these places of `tokens`."""
        tokens = np.full((len(texts), length), self.pad_id, np.int32)
        types, mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
        for row, text in enumerate(texts):
            size = len(self.tokens[text])
            tokens[row, :size], types[row, :size] = self.tokens[text], self.types[text]
            mask[row, :size] = True
        return dict(tokens=tokens, types=types, mask=mask)


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
        labels = np.full((len(rows), length), NO_LABEL, np.int32)
        for n, row in enumerate(rows):
            labels[n, : len(self.labels[row])] = self.labels[row]
        return self._padded(rows, length) | dict(labels=labels)


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
        lengths = np.fromiter(map(len, self.tokens), np.int32, len(self.tokens))
        return lengths.reshape(-1, self.choices).max(1)

    def arrays(self, rows: Int[np.ndarray, " batch"], length: int) -> dict[str, np.ndarray]:
        """As `Encoded.arrays`, with tokens, types and mask (batch, choices, time)."""
        texts = (rows[:, None] * self.choices + np.arange(self.choices)).reshape(-1)
        shape = (len(rows), self.choices, length)
        padded = {name: part.reshape(shape) for name, part in self._padded(texts, length).items()}
        return padded | dict(labels=np.asarray(self.labels)[rows])
