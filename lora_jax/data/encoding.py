"""Examples as an encoder reads them: one text or two, words with tags, a question on a context, or
a text a choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .encoded import NO_LABEL, Encoded, EncodedChoices, EncodedSpans, EncodedTags
from .examples import Dataset
from .records import Example
from .tokenizers import Tokenizer

# Encodings hold far more than the ids we keep; a chunk bounds how many are alive at once.
_CHUNK = 2048


def encode(data: Dataset, tokenizer: Tokenizer, max_length: int) -> dict[str, Encoded]:
    """The token ids of every split as its head reads them, at most `max_length` long; what is
    longer loses tokens at its end.

    Raises:
        ValueError: the recipe is for decoders alone, examples have different numbers of choices, or
            `max_length` leaves no room.
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

    tokens, types, truncated = [], [], 0
    with _truncation(tokenizer, max_length, "longest_first"):
        for start in range(0, len(inputs), _CHUNK):
            for found in tokenizer.backend.encode_batch_fast(inputs[start : start + _CHUNK]):
                tokens.append(np.asarray(found.ids, np.int32))
                types.append(np.asarray(found.type_ids, np.int32))
                truncated += bool(found.overflowing)
    return Encoded(
        tokens, types, labels, max_length, tokenizer.pad_id, truncated, tokenizer.fingerprint
    )


def _tags(
    data: Dataset, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
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
    data: Dataset, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
) -> EncodedSpans:
    tokens, types, labels, offsets, truncated = [], [], [], [], 0
    with _truncation(tokenizer, max_length, "only_second"):
        for example in examples:
            values = example.values
            try:
                found = tokenizer.backend.encode(values["question"], values["context"])
            except Exception as error:  # The package raises bare Exception.
                raise ValueError(
                    f"{example.place}: a question needs to leave room for its context within "
                    f"max_length {max_length}, but this one does not ({error}). Raise "
                    "data.max_length, or take the question out."
                ) from None
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
    data: Dataset, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
) -> EncodedChoices:
    counts = {len(example.values["choices"]) for part in data.splits.values() for example in part}
    if len(counts) > 1:
        raise ValueError(
            f"A multiple-choice head needs equally many choices in every example, but "
            f"{data.name!r} has {sorted(counts)}. Take the others out, or use a decoder."
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
