"""Examples of a task recipe from any source: read as a stream, checked, split, without repeated
inputs.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .completions import Completions
from .fields import Unfit, values_of
from .records import SPLITS, split_of
from .rows import OnError, Problems, Row
from .sources import Source, open_source
from .tasks import Recipe, references, render


class Example(NamedTuple):
    """A record: where it stands, and the values of its recipe's roles."""

    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class TaskData:
    """The splits of a task. `note` says what a reader of results must know; `left_out` which rows
    are missing, and why.
    """

    name: str
    recipe: Recipe
    splits: Mapping[str, tuple[Example, ...]]
    label_names: tuple[str, ...]
    note: str
    left_out: str


def load_examples(
    name: str,
    recipe: Recipe,
    *,
    columns: Mapping[str, str] | None = None,
    on_error: OnError = "stop",
    label_names: Sequence[str] | None = None,
    limit: int | None = None,
    data_dir: Path | str | None = None,
) -> TaskData:
    """Training, validation and test examples of the data set `name` (see `open_source`).

    A single file is split 8:1:1 by the sha256 of its inputs, each input once. Published splits are
    kept; a test split whose labels are hidden is not used, and where validation or test is missing
    the other serves, or texts of train in hash bucket 8.

    Args:
        columns: the column of a role, where it is not the recipe's.
        on_error: 'stop' at the first wrong row, or 'skip' and count them.
        label_names: classes in the order of their ids; by default the source's, else those of
        train, sorted.
        limit: training examples at most; those whose hashes are smallest, so that memory is bounded
            while a large file is read. Of a single file every split is cut so.

    Raises:
        ValueError: a row is wrong (file, line, reason), or a split is empty, with what was left out
            and why.
    """
    columns, source, problems = (
        columns or {},
        open_source(name, data_dir=data_dir),
        Problems(on_error),
    )
    split_rows, duplicates = _collect(source, recipe, columns, problems, limit)
    split_rows, note = _assign(name, recipe, split_rows)
    names = _label_names(recipe, columns, source, split_rows.get("train", []), label_names)
    splits = {split: tuple(_known(rows, names, problems)) for split, rows in split_rows.items()}
    for split in SPLITS:
        if not splits.get(split):
            counts = ", ".join(f"{key} {len(rows)}" for key, rows in splits.items())
            raise ValueError(
                f"Data set {name!r} needs examples in every split, but {split!r} is empty "
                f"({counts}). "
                f"{problems or 'No row was left out.'} Give more rows, or name the right fields "
                "with --config.data.fields."
            )
    if duplicates:
        note = f"{note} {duplicates} rows with a repeated input left out.".strip()
    return TaskData(name, recipe, splits, names, note, str(problems))


def to_completions(
    data: TaskData, *, prompt: str | None = None, completion: str | None = None
) -> dict[str, Completions]:
    """Prompts with completions of every split, by the recipe's templates or those given, with all
    references.
    """
    recipe = data.recipe
    out = {}
    for split, examples in data.splits.items():
        prompts = tuple(render(prompt or recipe.prompt, example.values) for example in examples)
        answers = tuple(
            render(completion or recipe.completion, example.values) for example in examples
        )
        right = tuple(
            references(recipe, example.values, answer)
            for example, answer in zip(examples, answers, strict=True)
        )
        out[split] = Completions(
            prompts, answers, " ".join((data.note, data.left_out)).strip(), right
        )
    return out


def input_text(recipe: Recipe, values: Mapping[str, Any]) -> str:
    """What tells a record's input from others: the values of all roles that are given."""
    # The target of a chat is the last message of its only role.
    parts = [
        values[role][:-1] if role == "messages" else values[role]
        for role in recipe.inputs
        if role in values
    ]
    return "\n".join(
        part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in parts
    )


def _collect(
    source: Source,
    recipe: Recipe,
    columns: Mapping[str, str],
    problems: Problems,
    limit: int | None,
) -> tuple[dict[str, list[Example]], int]:
    """The examples of every split of the source, and how many repeated inputs were left out."""
    if "all" not in source.streams:
        kept = {
            split: _keep(
                _checked(stream(problems), recipe, columns, problems),
                recipe,
                limit if split == "train" else None,
            )
            for split, stream in source.streams.items()
        }
        return kept, 0
    seen: set[bytes] = set()
    parts: dict[str, _Smallest] = {split: _Smallest(limit) for split in SPLITS}
    duplicates = 0
    for example in _checked(source.streams["all"](problems), recipe, columns, problems):
        text = input_text(recipe, example.values)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if digest[:12] in seen:
            duplicates += 1
            continue
        seen.add(digest[:12])
        parts[split_of(example.values[recipe.group] if recipe.group else text)].add(digest, example)
    return {split: part.examples() for split, part in parts.items()}, duplicates


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


def _keep(examples: Iterator[Example], recipe: Recipe, limit: int | None) -> list[Example]:
    smallest = _Smallest(limit)
    for example in examples:
        smallest.add(
            hashlib.sha256(
                input_text(recipe, example.values).encode("utf-8", "surrogatepass")
            ).digest(),
            example,
        )
    return smallest.examples()


def _checked(
    rows: Iterator[Row], recipe: Recipe, columns: Mapping[str, str], problems: Problems
) -> Iterator[Example]:
    for place, fields in rows:
        try:
            yield Example(place, values_of(recipe, columns, fields))
        except Unfit as error:
            problems.report(place, error.reason, str(error))


def _assign(
    name: str, recipe: Recipe, splits: dict[str, list[Example]]
) -> tuple[dict[str, list[Example]], str]:
    """The splits with every part filled, and a sentence on what serves as what."""
    hidden = [role for role in ("label", "answer") if role in recipe.fields]
    shown = lambda rows: [
        row for row in rows if all(row.values.get(role) is not None for role in hidden)
    ]
    labelled = {split: shown(rows) for split, rows in splits.items()}
    notes = [
        f"The published {split} split of {name} has no labels and is not used."
        for split in ("validation", "test")
        if splits.get(split) and not labelled[split]
    ]
    out = {split: rows for split, rows in labelled.items() if rows}
    if "train" not in out or set(out) == set(SPLITS):
        return out, " ".join(notes)
    if "test" not in out and "validation" in out:
        out["test"] = out.pop("validation")
        notes.append("Validation serves as test.")
    buckets = {"validation"} if "test" in out else {"validation", "test"}
    train = out["train"]
    where = [split_of(input_text(recipe, example.values)) for example in train]
    for split in sorted(buckets):
        out[split] = [example for example, bucket in zip(train, where) if bucket == split]
    out["train"] = [example for example, bucket in zip(train, where) if bucket not in buckets]
    notes.append(f"{' and '.join(sorted(buckets)).capitalize()} cut out of train by hash.")
    return out, " ".join(notes)


def _label_names(
    recipe: Recipe,
    columns: Mapping[str, str],
    source: Source,
    train: Sequence[Example],
    given: Sequence[str] | None,
) -> tuple[str, ...]:
    role = "label" if "label" in recipe.fields else "tags" if "tags" in recipe.fields else None
    if role is None:
        return ()
    if given:
        return tuple(given)
    if declared := source.classes.get(columns.get(role) or recipe.fields[role]):
        return declared
    found = {
        label
        for example in train
        for label in ([example.values[role]] if role == "label" else example.values[role])
    }
    numbers = all(label.lstrip("-").isdigit() for label in found)
    names = tuple(sorted(found, key=int if numbers else str))
    if role == "label" and len(names) < 2:
        raise ValueError(
            "A classification needs at least two classes, but the training split of "
            f"{source.name!r} has {', '.join(names) or 'none'}. "
            "Check --config.data.fields.label."
        )
    return names


def _known(
    rows: Sequence[Example], names: tuple[str, ...], problems: Problems
) -> Iterator[Example]:
    """The rows whose label is one of the classes."""
    known = set(names)
    for row in rows:
        labels = [row.values["label"]] if "label" in row.values else row.values.get("tags") or ()
        wrong = [label for label in labels if known and label not in known]
        if wrong:
            listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            problems.report(
                row.place,
                "an unknown label",
                f"a label needs to be one of {listed}, but {wrong[0]!r} came.",
            )
        else:
            yield row
