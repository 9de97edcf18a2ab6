"""Labelled texts of one split, and the rule that splits a data set by its texts."""

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class TextRecords:
    """Texts with labels: one split of a data set, in the order of its source.

    `texts`, `pairs` (second segments, or None for single texts) and `labels` have one entry an
    example; every label lies in `range(len(label_names))` (scores of a regression are floats,
    without names), and the three splits of one data set share `label_names`. `duplicates` counts
    the rows that the whole data set left out because their text came before. `note` says in a
    sentence what a reader of results must know about the split (for example that a published test
    split has no labels); it is empty otherwise.
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: Int[np.ndarray, " examples"] | Float[np.ndarray, " examples"]
    label_names: tuple[str, ...]
    name: str
    split: str
    duplicates: int = 0
    note: str = ""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Int[np.ndarray, " chosen"]) -> "TextRecords":
        """The examples at `indices`, in that order."""
        texts = tuple(self.texts[i] for i in indices)
        pairs = None if self.pairs is None else tuple(self.pairs[i] for i in indices)
        return dataclasses.replace(self, texts=texts, pairs=pairs, labels=self.labels[indices])


def subset(records: TextRecords, examples: int | None, *, seed: int = 0) -> TextRecords:
    """At most `examples` of the records, drawn without replacement, in their old order.

    The draw depends on `seed` alone, which is not the training seed: runs that differ in their
    training seed see the same examples, and a smaller subset lies inside a larger one. None, or
    more than there are, returns all.

    Raises:
        ValueError: `examples` is less than 1.
    """
    if examples is None or examples >= len(records):
        return records
    if examples < 1:
        raise ValueError(
            f"a subset of {records.name} ({records.split}) needs at least 1 example, but "
            f"{examples} were asked for. "
            f"Set the cap to a number from 1 to {len(records)}, or to None for all examples."
        )
    chosen = np.random.default_rng(seed).permutation(len(records))[:examples]
    return records.take(np.sort(chosen))


def hash_bucket(text: str) -> int:
    """The text's bucket, 0 to 9: sha256 of its UTF-8 bytes, read as an integer, modulo 10."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest(), "big") % 10


def split_of(text: str) -> str:
    """The split a text belongs to by its hash alone: buckets 0-7 train, 8 validation, 9 test.

    The rule needs no random numbers and no row order, so a text never moves when a file grows, and
    equal texts can never lie in two splits.
    """
    bucket = hash_bucket(text)
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def first_occurrences(keys: Sequence[object]) -> list[int]:
    """The positions at which a key appears for the first time, ascending."""
    seen: dict[object, int] = {}
    for position, key in enumerate(keys):
        seen.setdefault(key, position)
    return list(seen.values())


def near_names(name: str, names: Iterable[str], *, limit: int = 3) -> str:
    """ "Nearest: 'a', 'b'. " for an error message, or nothing when no name is like `name`."""
    close = difflib.get_close_matches(name, sorted(set(names)), n=limit, cutoff=0.5)
    return f"Nearest: {', '.join(map(repr, close))}. " if close else ""


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


def require_examples(splits: dict[str, TextRecords], *, remedy: str) -> dict[str, TextRecords]:
    """The same splits, each known to hold at least one example.

    Raises:
        ValueError: a split is empty; `remedy` ends the message.
    """
    for split, records in splits.items():
        if not len(records):
            counts = ", ".join(f"{key} {len(value)}" for key, value in splits.items())
            raise ValueError(
                f"data set {records.name!r} needs examples in every split, but {split!r} is empty "
                f"({counts}). {remedy}"
            )
    return splits
