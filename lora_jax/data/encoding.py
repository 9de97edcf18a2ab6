"""Examples as an encoder reads them: one text or two, words with tags, a question on a context, or
a text a choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from .examples import Dataset
from .records import Example
from .tokenizers import Tokenizer, backend_errors

# Encodings hold far more than the ids we keep; a chunk bounds how many are alive at once.
_CHUNK = 2048
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

    def taken(self, rows: Int[np.ndarray, " examples"]) -> Encoded:
        """The examples at these places, each as often as it is named, of a split whose examples are
        one text and one label each.
        """
        chosen = {name: [getattr(self, name)[row] for row in rows] for name in ("tokens", "types")}
        return dataclasses.replace(self, **chosen, labels=np.asarray(self.labels)[rows])

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


def encode(data: Dataset, tokenizer: Tokenizer, max_length: int) -> dict[str, Encoded]:
    """The token ids of every split as its head reads them, at most `max_length` long; what is
    longer loses tokens at its end.

    Raises:
        ValueError: the recipe is for decoders alone, examples have different numbers of choices, or
            `max_length` leaves no room.
    """
    makers = {"class": _texts, "score": _texts, "token": _tags, "span": _spans, "choice": _choices}
    make = makers.get(data.recipe.head)
    if make is None:
        raise ValueError(
            "An encoder needs a recipe with a head, and this one writes text: it needs a decoder. "
            "Set config.data.task to 'completion' and config.model to a language model."
        )
    pair = "text_pair" in data.recipe.fields or data.recipe.head in ("span", "choice")
    special, texts = tokenizer.backend.num_special_tokens_to_add(pair), 2 if pair else 1
    if max_length < special + texts:
        raise ValueError(
            f"max_length needs to be at least {special + texts} ({special} special tokens and a "
            f"token of each text), but {max_length} came. Raise data.max_length; 128 suits "
            "sentences."
        )
    return {
        split: make(data, examples, tokenizer, max_length)
        for split, examples in data.splits.items()
    }


def cut_note(encoded: Mapping[str, Any], max_length: int) -> str:
    """A sentence on how many examples of each encoded split lost tokens to `max_length`; empty if
    none did.
    """
    cut = [
        f"{part.truncated} of {len(part)} {split}"
        for split, part in encoded.items()
        if part.truncated
    ]
    return f"Examples cut to max_length {max_length}: {', '.join(cut)}." if cut else ""


def _texts(
    data: Dataset, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
) -> Encoded:
    """[CLS] text [SEP], or [CLS] text [SEP] pair [SEP]; of a pair the longer text is cut first."""
    values = [example.values for example in examples]
    if data.recipe.head == "class":
        ids = {name: n for n, name in enumerate(data.label_names)}
        labels = np.array([ids[value["label"]] for value in values], np.int32)
    else:
        labels = np.array([value["score"] for value in values], np.float32)
    if "text_pair" in data.recipe.fields:
        inputs: list[Any] = [(value["text"], value["text_pair"]) for value in values]
    else:
        inputs = [value["text"] for value in values]
    return Encoded(labels=labels, **_ids(tokenizer, inputs, max_length))


def _tags(
    data: Dataset, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
) -> EncodedTags:
    ids = {name: n for n, name in enumerate(data.label_names)}
    labels: list[np.ndarray] = []

    def look(found: Any) -> None:
        tags = examples[len(labels)].values["tags"]
        before = [None, *found.word_ids]
        # A word's tag is at its first token.
        own = [
            NO_LABEL if word is None or word == last else ids[tags[word]]
            for word, last in zip(found.word_ids, before)
        ]
        labels.append(np.array(own, np.int32))

    inputs = [example.values["words"] for example in examples]
    common = _ids(tokenizer, inputs, max_length, look=look, is_pretokenized=True)
    return EncodedTags(labels=labels, **common)


def _spans(
    data: Dataset, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
) -> EncodedSpans:
    labels: list[tuple[int, int]] = []
    offsets: list[np.ndarray] = []

    def look(found: Any) -> None:
        values = examples[len(labels)].values
        places = [
            place if part == 1 else (-1, -1)
            for part, place in zip(found.sequence_ids, found.offsets)
        ]
        offsets.append(np.array(places, np.int32))
        text, start = values["answers"][0]["text"], values["answers"][0]["start"]
        start = start if start >= 0 else values["context"].find(text)
        labels.append(_token_span(offsets[-1], start, start + len(text)))

    pairs = [(example.values["question"], example.values["context"]) for example in examples]
    _require_room(examples, tokenizer, max_length)
    common = _ids(tokenizer, pairs, max_length, "only_second", look=look)
    return EncodedSpans(labels=np.array(labels, np.int32), offsets=tuple(offsets), **common)


def _require_room(examples: Sequence[Example], tokenizer: Tokenizer, max_length: int) -> None:
    """Nothing, if every question leaves room for a token of its context."""
    special = tokenizer.backend.num_special_tokens_to_add(True)
    for example in examples:
        with backend_errors(tokenizer.source):
            question = tokenizer.backend.encode(
                example.values["question"], add_special_tokens=False
            )
        if len(question.ids) + special >= max_length:
            raise ValueError(
                f"{example.place}: a question needs to leave room for its context, but has "
                f"{len(question.ids)} tokens, with {special} special ones and max_length "
                f"{max_length}. Raise data.max_length, or take the record out."
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
    data: Dataset, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
) -> EncodedChoices:
    counts = {len(example.values["choices"]) for part in data.splits.values() for example in part}
    if len(counts) > 1:
        raise ValueError(
            f"A multiple-choice head needs equally many choices in every example, but "
            f"{data.name!r} has {sorted(counts)}. Take the others out, or use a decoder."
        )
    pairs = [
        (example.values["question"], choice)
        for example in examples
        for choice in example.values["choices"]
    ]
    labels = np.array([example.values["answer"] for example in examples], np.int32)
    return EncodedChoices(labels=labels, choices=counts.pop(), **_ids(tokenizer, pairs, max_length))


def _ids(
    tokenizer: Tokenizer,
    inputs: Sequence[Any],
    max_length: int,
    strategy: str = "longest_first",
    *,
    look: Callable[[Any], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What all kinds of `Encoded` have, of texts or pairs that are cut as `strategy` says. `look` is
    shown the tokenizer's encoding of each.
    """
    backend = tokenizer.backend
    # The fast one leaves out where tokens stand in the text, which `look` wants to know.
    encode_some = backend.encode_batch if look else backend.encode_batch_fast
    tokens, types, truncated = [], [], 0
    backend.enable_truncation(max_length, strategy=strategy)
    try:
        for start in range(0, len(inputs), _CHUNK):
            with backend_errors(tokenizer.source):
                some = encode_some(inputs[start : start + _CHUNK], **options)
            for found in some:
                tokens.append(np.asarray(found.ids, np.int32))
                types.append(np.asarray(found.type_ids, np.int32))
                truncated += bool(found.overflowing)
                if look is not None:
                    look(found)
    finally:
        backend.no_truncation()
    return dict(
        tokens=tokens,
        types=types,
        max_length=max_length,
        pad_id=tokenizer.pad_id,
        truncated=truncated,
        fingerprint=tokenizer.fingerprint,
    )
