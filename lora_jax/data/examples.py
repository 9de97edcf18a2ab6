"""Examples of a data set: read from any source by a recipe, checked, split, each input once."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from .fields import is_integer
from .recipes import Recipe, recipe_named
from .records import (
    SPLITS,
    Example,
    OnError,
    Problem,
    Problems,
    Record,
    Source,
    SourceCsv,
    Stream,
    near_names,
    split_of,
)
from .sources import Rows, open_source


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The examples of every split, as a recipe reads them.

    Every label is one of `label_names`, whose order is that of the class ids. `note` says what a
    reader of results must know of the splits; `left_out` which records are missing, and why.
    """

    name: str
    recipe: Recipe
    splits: Mapping[str, tuple[Example, ...]]
    label_names: tuple[str, ...]
    note: str
    left_out: str

    def __getitem__(self, split: str) -> tuple[Example, ...]:
        return self.splits[split]

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of all that was read: values and class names, in their order, split by
        split; not where they stood.
        """
        digest = hashlib.sha256(json.dumps(self.label_names).encode())
        for split, examples in self.splits.items():
            digest.update(f"\n{split} {len(examples)}\n".encode())
            for example in examples:
                digest.update(json.dumps(example.values, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()


def load(
    name: str | Rows | Mapping[str, Rows],
    recipe: Recipe | str = "classification",
    *,
    columns: Mapping[str, str] | None = None,
    on_error: OnError = "stop",
    label_names: Sequence[str] | None = None,
    limit: int | None = None,
    held_out: Mapping[str, str] | None = None,
    data_dir: Path | str | None = None,
    source_csv: SourceCsv | None = None,
) -> Dataset:
    """Training, validation and test examples of a data set: its name, or rows (see `open_source`).

    A single file is split 8:1:1 by the sha256 of its inputs (`split_of`), each input once.
    Published splits are kept; a test split whose labels are hidden is not used, and where
    validation or test is missing the other serves, or texts of train in hash bucket 8.

    Args:
        recipe: what the fields mean, or its name in RECIPES.
        columns: the column of a role, where it is not the recipe's.
        on_error: 'stop' at the first wrong record, or 'skip' and count them.
        label_names: classes in the order of their ids, which records may give instead; by default
            the source's, else those of train, sorted.
        limit: training examples at most: those whose hashes are smallest, so that more of a file
            changes few of them, and memory is bounded while a large one is read.
        held_out: the published splits that are 'validation' and 'test', several joined by +, where
            they are not those of these names. One may be both: nothing is then cut out of train.
        data_dir, source_csv: as `open_source`.

    Raises:
        FileNotFoundError, OSError: it is not there, or cannot be read.
        ValueError: a record is wrong (file, line, reason), or a split is empty, with what was left
            out and why; or no split is called as `held_out` has it.
    """
    if limit is not None and limit < 1:
        raise ValueError(
            f"A limit of training examples needs to be 1 or more, but {limit} came. Leave it out "
            "for all."
        )
    recipe, columns, problems = recipe_named(recipe), columns or {}, Problems(on_error)
    source = open_source(name, data_dir=data_dir, source_csv=source_csv)
    classes = _declared_classes(recipe, columns, source, label_names)

    read, held_out = _Reader(recipe, columns, classes, problems), held_out or {}
    if "all" in source.streams:
        if held_out:
            raise ValueError(
                f"Data set {source.name!r} has no published splits: leave "
                f"{', '.join(f'config.data.{split}_split' for split in held_out)} at None."
            )
        parts, notes = read.split(source.streams["all"](problems), limit)
    else:
        parts, notes = read.published(source, limit, held_out)
    names = classes or _observed_classes(recipe, source, parts.get("train", []))
    ids = _ids(classes)
    splits = {
        split: tuple(_of_classes(rows, names, ids, problems)) for split, rows in parts.items()
    }

    _require_splits(splits, source.name, problems)
    note = " ".join(filter(None, (*notes, *_alike(names), source.note)))
    return Dataset(
        source.name, recipe, {split: splits[split] for split in SPLITS}, names, note, str(problems)
    )


def _require_splits(splits: Mapping[str, Sequence[Example]], name: str, problems: Problems) -> None:
    for split in SPLITS:
        if not splits.get(split):
            counts = ", ".join(f"{key} {len(rows)}" for key, rows in splits.items())
            raise ValueError(
                f"Data set {name!r} needs examples in every split, but {split!r} is empty "
                f"({counts or 'no example at all'}). {problems or 'No row was left out.'} Give "
                "more rows, or name the right fields with --config.data.fields."
            )


def read_examples(
    name: str, recipe: Recipe | str, *, columns: Mapping[str, str] | None = None
) -> tuple[Example, ...]:
    """All examples of a data set in their order, repeated ones too: nothing is split.

    Raises:
        FileNotFoundError, OSError, ValueError: as `load`.
    """
    problems = Problems()
    reader = _Reader(recipe_named(recipe), columns or {}, (), problems)
    streams = open_source(name).streams.values()
    return tuple(example for stream in streams for example in reader.examples(stream(problems)))


class _Reader:
    """Reads records by a recipe, and puts them into splits."""

    def __init__(
        self,
        recipe: Recipe,
        columns: Mapping[str, str],
        classes: tuple[str, ...],
        problems: Problems,
    ) -> None:
        self.recipe, self.columns, self.classes, self.problems = recipe, columns, classes, problems

    def examples(self, records: Iterable[Record]) -> Iterator[Example]:
        """What can be read; all else is reported."""
        for record in records:
            found = self.recipe.read(record, self.columns)
            if isinstance(found, Problem):
                self.problems.report(found)
            else:
                yield found

    def labelled(self, examples: Iterable[Example]) -> Iterator[Example]:
        """The examples whose target is not hidden; the others are reported."""
        for example in examples:
            if self.is_hidden(example):
                detail = (
                    f"a {self.recipe.target} is needed, but none (or -1, which marks a hidden one) "
                    "came; if -1 is a class, name it in label_names."
                )
                self.problems.report(Problem(example.place, "no label", detail))
            else:
                yield example

    def is_hidden(self, example: Example) -> bool:
        """True where a data set keeps the answer to itself: None or -1."""
        if "label" in self.recipe.fields:
            label = example.values["label"]
            return label is None or (label == "-1" and "-1" not in self.classes)
        return example.values.get("answer", "") is None

    def split(
        self, records: Iterable[Record], limit: int | None
    ) -> tuple[dict[str, list[Example]], list[str]]:
        """The parts of a source without splits, each input once, and what a reader must know."""
        seen: set[bytes] = set()
        repeated = 0
        parts = {split: _Smallest(limit if split == "train" else None) for split in SPLITS}
        for example in self.labelled(self.examples(records)):
            digest = _digest(self.recipe, example)
            if digest[:12] in seen:
                repeated += 1
                continue
            seen.add(digest[:12])
            parts[split_of(self.recipe.group_text(example.values))].add(digest, example)
        notes = [f"{repeated} rows with a repeated input left out."] if repeated else []
        return {split: part.examples() for split, part in parts.items()}, notes

    def published(
        self, source: Source, limit: int | None, asked: Mapping[str, str]
    ) -> tuple[dict[str, list[Example]], list[str]]:
        """The parts of a source with splits, none of them missing, and what serves as what."""
        held_out, notes = self._held_out(source, asked)
        if "test" not in held_out and "validation" in held_out and "validation" not in asked:
            held_out["test"] = held_out.pop("validation")
            notes.append("Validation serves as test.")
        missing = [split for split in ("test", "validation") if split not in held_out]
        if missing:
            notes.append(f"{' and '.join(missing).capitalize()} cut out of train by hash.")

        cut: dict[str, list[Example]] = {split: [] for split in missing}
        train = _Smallest(limit)
        stream = source.streams["train"](self.problems)
        for example in self.labelled(self.examples(stream)):
            split = split_of(self.recipe.group_text(example.values)) if missing else "train"
            if split in cut:
                cut[split].append(example)
            else:
                train.add(_digest(self.recipe, example), example)
        parts = {"train": train.examples(), **held_out, **cut}
        return parts, notes + self._shared(parts)

    def _held_out(
        self, source: Source, asked: Mapping[str, str]
    ) -> tuple[dict[str, list[Example]], list[str]]:
        """The published splits besides train that have answers."""
        found, notes = {}, []
        if shared := set(asked.get("validation", "").split("+")) & set(
            asked.get("test", "").split("+")
        ) - {""}:
            notes.append(
                f"The published {' and '.join(sorted(shared))} serves as validation and as test: "
                "what is chosen on it is chosen on what is reported."
            )
        for split in ("validation", "test"):
            streams = (
                _asked(source, asked[split]) if split in asked else [source.streams.get(split)]
            )
            if None in streams:
                continue
            rows = [row for stream in streams for row in self.examples(stream(self.problems))]
            scores = {row.values["score"] for row in rows if "score" in row.values}
            if rows and (all(map(self.is_hidden, rows)) or scores == {-1.0}):
                notes.append(
                    f"The published {split} split of {source.name} has no labels and is not used."
                )
            elif rows:
                found[split] = list(self.labelled(rows))
        return found, notes

    def _shared(self, parts: Mapping[str, list[Example]]) -> list[str]:
        """A sentence on each held-out split with inputs of train."""
        train = {_digest(self.recipe, example) for example in parts["train"]}
        counts = {
            split: sum(_digest(self.recipe, example) in train for example in parts[split])
            for split in ("validation", "test")
        }
        return [
            f"{count} of {len(parts[split])} {split} inputs are in the train split too."
            for split, count in counts.items()
            if count
        ]


def _asked(source: Source, names: str) -> list[Stream]:
    """The published splits of these names, joined by +."""
    there = source.published or source.streams
    if unknown := [name for name in names.split("+") if name not in there or name == "train"]:
        raise ValueError(
            f"Data set {source.name!r} has no split {unknown[0]!r} to hold out. It has: "
            f"{', '.join(name for name in there if name != 'train')}."
        )
    return [there[name] for name in names.split("+")]


class _Smallest:
    """At most `limit` examples, those whose digests are smallest, in the order in which they
    came.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit, self._count = limit, 0
        self._heap: list[tuple[int, int, Example]] = []

    def add(self, digest: bytes, example: Example) -> None:
        entry = (-int.from_bytes(digest[:8], "big"), self._count, example)
        self._count += 1
        if self._limit is None:
            self._heap.append(entry)
        elif len(self._heap) < self._limit:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def examples(self) -> list[Example]:
        return [example for _, _, example in sorted(self._heap, key=lambda entry: entry[1])]


def _digest(recipe: Recipe, example: Example) -> bytes:
    return hashlib.sha256(recipe.input_text(example.values).encode("utf-8")).digest()


def _declared_classes(
    recipe: Recipe, columns: Mapping[str, str], source: Source, given: Sequence[str] | None
) -> tuple[str, ...]:
    """The classes that the user or the source names; none where the examples tell."""
    role = recipe.class_role
    if role is None:
        return ()
    names = tuple(
        map(str, given or source.classes.get(columns.get(role) or recipe.fields[role], ()))
    )
    if names and (len(set(names)) < len(names) or (role == "label" and len(names) < 2)):
        raise ValueError(
            "A classification needs at least two different classes, but label_names="
            f"{list(names)} came. Correct --config.data.label_names."
        )
    return names


def _observed_classes(recipe: Recipe, source: Source, train: Sequence[Example]) -> tuple[str, ...]:
    """The different labels of train, sorted; as numbers if all are integers."""
    role = recipe.class_role
    if role is None:
        return ()
    places: dict[str, str] = {}
    for example in train:
        value = example.values[role]
        for label in [value] if role == "label" else value:
            places.setdefault(label, example.place)

    numbers = all(map(is_integer, places))
    names = tuple(sorted(places, key=int if numbers else str))
    if role == "label" and train and len(names) < 2:
        raise ValueError(
            "A classification needs at least two classes, but the training split of "
            f"{source.name!r} has {', '.join(names)} alone (first: {places[names[0]]}). Check "
            "--config.data.fields.label."
        )

    if role == "label" and numbers and names and int(names[0]) < 0:
        raise ValueError(
            f"{places[names[0]]}: a label needs to be a class name or an id from 0, but {names[0]} "
            "came. If it is a class, name all of them with --config.data.label_names."
        )
    return names


def _alike(names: Sequence[str]) -> list[str]:
    """A sentence on each group of classes that people may have meant as one: '1' and '1.0', 'Pos'
    and 'pos'.
    """
    groups: dict[float | str, list[str]] = defaultdict(list)
    for name in names:
        try:
            meant: float | str = float(name)
        except ValueError:
            meant = unicodedata.normalize("NFKC", name).casefold()
        groups[meant].append(name)
    return [
        f"Classes that differ in spelling alone are kept apart: {', '.join(map(repr, group))}."
        for group in groups.values()
        if len(group) > 1
    ]


def _ids(declared: tuple[str, ...]) -> dict[str, str]:
    """The declared classes by their ids as text, which records may give where names are words."""
    if any(map(is_integer, declared)):
        return {}
    return {str(n): name for n, name in enumerate(declared)}


def _of_classes(
    rows: Sequence[Example], names: tuple[str, ...], ids: Mapping[str, str], problems: Problems
) -> Iterator[Example]:
    """The rows whose labels are classes, by their names."""
    known = {**ids, **{name: name for name in names}}
    for row in rows:
        role = next((role for role in ("label", "tags") if role in row.values), None)
        if role is None or not known:
            yield row
            continue
        value = row.values[role]
        labels = [value] if role == "label" else value
        if unknown := [label for label in labels if label not in known]:
            listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            near = near_names(unknown[0], names)
            detail = f"a label needs to be one of {listed}, but {unknown[0]!r} came. {near}"
            problems.report(Problem(row.place, "an unknown label", detail.strip()))
            continue
        named = [known[label] for label in labels]
        yield row._replace(values={**row.values, role: named[0] if role == "label" else named})
