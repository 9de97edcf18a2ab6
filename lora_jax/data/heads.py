"""Examples of a task as an encoder reads them: one text or two, words with tags, a question on a
context, or a text a choice.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from .examples import Example, TaskData
from .records import TextRecords
from .tokenizers import Encoded, Tokenizer, encode, pad_rows

NO_LABEL = -1  # a token that has no tag, or a span that is not in the window


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


def encode_task(data: TaskData, tokenizer: Tokenizer, max_length: int) -> dict[str, Encoded]:
    """Every split of a task as its encoder head reads it.

    Raises:
        ValueError: the recipe is for decoders alone, or examples have different numbers of choices.
    """
    make = {
        "class": _texts,
        "score": _texts,
        "token": _tags,
        "span": _spans,
        "choice": _choices,
    }.get(data.recipe.head)
    if make is None:
        raise ValueError(
            "This recipe writes text: it needs a decoder. Set config.data.task to 'completion' and "
            "config.model to a language model."
        )
    return {
        split: make(data, split, examples, tokenizer, max_length)
        for split, examples in data.splits.items()
    }


def _texts(
    data: TaskData, split: str, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
) -> Encoded:
    pairs = (
        tuple(example.values["text_pair"] for example in examples)
        if "text_pair" in data.recipe.fields
        else None
    )
    labels: Any = np.array([example.values.get("score") for example in examples], np.float32)
    if data.recipe.head == "class":
        ids = {name: n for n, name in enumerate(data.label_names)}
        labels = np.array([ids[example.values["label"]] for example in examples], np.int32)
    texts = tuple(example.values["text"] for example in examples)
    return encode(
        TextRecords(texts, pairs, labels, data.label_names, data.name, split), tokenizer, max_length
    )


def _tags(
    data: TaskData, split: str, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
) -> EncodedTags:
    ids = {name: n for n, name in enumerate(data.label_names)}
    tokens, types, labels, truncated = [], [], [], 0
    with _truncation(tokenizer, max_length, "longest_first"):
        for example in examples:
            found = tokenizer.backend.encode(example.values["words"], is_pretokenized=True)
            words, tags = found.word_ids, example.values["tags"]
            first = [word is not None and word not in words[:n] for n, word in enumerate(words)]
            labels.append(
                np.array(
                    [ids[tags[word]] if new else NO_LABEL for word, new in zip(words, first)],
                    np.int32,
                )
            )
            tokens.append(np.asarray(found.ids, np.int32))
            types.append(np.asarray(found.type_ids, np.int32))
            truncated += bool(found.overflowing)
    return EncodedTags(
        tokens, types, labels, max_length, tokenizer.pad_id, truncated, tokenizer.fingerprint
    )


def _spans(
    data: TaskData, split: str, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
) -> EncodedSpans:
    tokens, types, labels, offsets, truncated = [], [], [], [], 0
    with _truncation(tokenizer, max_length, "only_second"):
        for example in examples:
            values = example.values
            found = tokenizer.backend.encode(values["question"], values["context"])
            places = np.array(
                [
                    place if part == 1 else (-1, -1)
                    for part, place in zip(found.sequence_ids, found.offsets)
                ],
                np.int32,
            )
            answer = values["answers"][0]
            start = (
                answer["start"] if answer["start"] >= 0 else values["context"].find(answer["text"])
            )
            labels.append(_token_span(places, start, start + len(answer["text"])))
            tokens.append(np.asarray(found.ids, np.int32))
            types.append(np.asarray(found.type_ids, np.int32))
            offsets.append(places)
            truncated += bool(found.overflowing)
    return EncodedSpans(
        tokens,
        types,
        np.asarray(labels, np.int32),
        max_length,
        tokenizer.pad_id,
        truncated,
        tokenizer.fingerprint,
        tuple(offsets),
    )


def _token_span(places: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """The tokens that hold the letters from `start` to `end`, or NO_LABEL twice if not all are
    there.
    """
    inside = np.flatnonzero((places[:, 1] > start) & (places[:, 0] < end) & (places[:, 0] >= 0))
    if not len(inside) or places[inside[0], 0] > start or places[inside[-1], 1] < end:
        return NO_LABEL, NO_LABEL
    return int(inside[0]), int(inside[-1])


def _choices(
    data: TaskData, split: str, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
) -> EncodedChoices:
    counts = {len(example.values["choices"]) for part in data.splits.values() for example in part}
    if len(counts) > 1:
        raise ValueError(
            f"A multiple-choice head needs as many choices in every example, but {data.name!r} has "
            f"{sorted(counts)}. Filter them."
        )
    (choices,) = counts
    tokens, types, truncated = [], [], 0
    with _truncation(tokenizer, max_length, "longest_first"):
        for example in examples:
            for found in tokenizer.backend.encode_batch(
                [(example.values["question"], choice) for choice in example.values["choices"]]
            ):
                tokens.append(np.asarray(found.ids, np.int32))
                types.append(np.asarray(found.type_ids, np.int32))
                truncated += bool(found.overflowing)
    labels = np.array([example.values["answer"] for example in examples], np.int32)
    return EncodedChoices(
        tokens,
        types,
        labels,
        max_length,
        tokenizer.pad_id,
        truncated,
        tokenizer.fingerprint,
        choices,
    )


@contextlib.contextmanager
def _truncation(tokenizer: Tokenizer, max_length: int, strategy: str) -> Iterator[None]:
    """Inside, the tokenizer cuts texts to `max_length` as `strategy` says."""
    tokenizer.backend.enable_truncation(max_length, strategy=strategy)
    try:
        yield
    finally:
        tokenizer.backend.no_truncation()
