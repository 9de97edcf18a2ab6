"""Text records from CSV, TSV and JSONL files: one file split by text hash, or a folder with a file
a split.
"""

import contextlib
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .labels import Classes, declared_classes, observed_classes
from .records import SPLITS, TextRecords, first_occurrences, near_names, require_examples, split_of

SUFFIXES = (".csv", ".tsv", ".jsonl")


class Row(NamedTuple):
    """One example as it stands in a file; `place` is 'file:line' for messages."""

    place: str
    text: str
    pair: str | None
    label: object


def load_files(
    path: Path,
    *,
    text: str,
    text_pair: str | None,
    label: str,
    label_names: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> dict[str, TextRecords]:
    """The splits of a .csv, .tsv or .jsonl file, or of a folder that holds train, validation and
    test files.

    A single file loses its rows with a text (and pair) that came before, then is split by
    `split_of`. The files of a
    folder are taken as they are: rows that several splits share stay, and `note` of the validation
    and test splits counts the texts that the train split holds too.

    Raises:
        FileNotFoundError: a file is missing. OSError: it cannot be read.
        ValueError: columns, rows, labels or encoding are wrong (with file and line), or a split is
            empty.
    """
    columns = dict(text=text, text_pair=text_pair, label=label)
    if path.is_dir():
        rows = {split: read_rows(_split_file(path, split), **columns) for split in SPLITS}
        classes = declared_classes(label_names, num_classes) or observed_classes(
            _labels(rows["train"])
        )
        return _folder_splits(path, rows, classes)
    rows_of_file = read_rows(path, **columns)
    classes = declared_classes(label_names, num_classes) or observed_classes(_labels(rows_of_file))
    kept = [
        rows_of_file[i] for i in first_occurrences([(row.text, row.pair) for row in rows_of_file])
    ]
    # A label on a row that is dropped as a duplicate is checked as well: a wrong file is better
    # stopped than half read.
    classes.ids(_labels(rows_of_file))
    duplicates = len(rows_of_file) - len(kept)
    # Hashing the first text alone keeps all pairs of one premise in one split.
    parts: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in kept:
        parts[split_of(row.text)].append(row)
    splits = {
        split: _records(part, classes, path, split, duplicates) for split, part in parts.items()
    }
    return require_examples(
        splits,
        remedy=(
            "A single file is split by the sha256 of its texts, about 8:1:1; give a larger file, "
            "or a folder with "
            "train.csv, validation.csv and test.csv to choose the splits yourself."
        ),
    )


def read_rows(path: Path, *, text: str, text_pair: str | None, label: str) -> list[Row]:
    """The rows of a .csv, .tsv or .jsonl file, in file order; blank lines are skipped.

    Raises:
        FileNotFoundError, OSError, ValueError: as `load_files`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"a data file needs one of the suffixes {', '.join(SUFFIXES)}, but {str(path)!r} came. "
            "Rename or convert the file."
        )
    read = _json_objects if path.suffix.lower() == ".jsonl" else _table_rows
    wanted = [name for name in (text, text_pair, label) if name is not None]
    rows = []
    with _reading(path):
        for place, fields in read(path, wanted):
            first, second = fields[text], fields[text_pair] if text_pair else None
            for name, value in ((text, first), (text_pair, second)):
                if name is not None and (not isinstance(value, str) or not value):
                    raise ValueError(
                        f"{place}: column {name!r} needs a text that is not empty, but {value!r} "
                        "came. Fill it in or remove the row."
                    )
            rows.append(Row(place, first, second, fields[label]))
    return rows


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what the operating system and the decoder say while `path` is read into one
    paragraph.
    """
    try:
        yield
    except FileNotFoundError as error:
        near = (
            near_names(path.name, (entry.name for entry in path.parent.glob("*")))
            if path.parent.is_dir()
            else ""
        )
        raise FileNotFoundError(
            f"data file {str(path)!r} does not exist. {near}Give the path of a .csv, .tsv or "
            ".jsonl file, or of a folder with train, validation and test files."
        ) from error
    except OSError as error:
        raise OSError(
            f"data file {str(path)!r} cannot be read: {error.strerror or error}. Check that it is "
            "a file and that you may read it."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data file {str(path)!r} needs to be UTF-8, but byte {error.object[error.start]:#04x} "
            f"({error.reason}) came. Convert it, for example: iconv -f latin1 -t utf-8 A > B."
        ) from error


def _table_rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, {column: field}) for the rows of a CSV or TSV file with a header line."""
    # A byte-order mark, as spreadsheets write it, would become part of the first column's name:
    # utf-8-sig drops it.
    with path.open(encoding="utf-8-sig", newline="") as file, _unlimited_fields():
        reader = csv.reader(
            file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
        )
        try:
            header = next(reader, [])
            _require_columns(path, header, wanted)
            for fields in reader:
                if fields and len(fields) != len(header):
                    raise ValueError(
                        f"{path}:{reader.line_num}: a row needs {len(header)} fields "
                        f"({', '.join(header)}), but {len(fields)} came. Quote fields that hold "
                        "the "
                        "delimiter or a line break."
                    )
                if fields:
                    yield f"{path}:{reader.line_num}", dict(zip(header, fields))
        except csv.Error as error:
            raise ValueError(
                f"{path}:{reader.line_num}: this row cannot be parsed: {error}. Write fields that "
                "hold "
                "quotes, delimiters or line breaks in double quotes, and double the quotes "
                "inside."
            ) from error


def _json_objects(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, object]]]:
    """(place, object) for the lines of a JSONL file."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: a JSONL line needs one JSON object, but this line does not "
                    "parse: "
                    f"{error.msg} (column {error.colno}). Correct or remove the line."
                ) from error
            if not isinstance(fields, dict):
                raise ValueError(
                    f"{path}:{number}: a JSONL line needs one JSON object, but a "
                    f"{type(fields).__name__} "
                    'came. Write lines such as {"text": "...", "label": 0}.'
                )
            _require_columns(f"{path}:{number}", list(fields), wanted)
            yield f"{path}:{number}", fields


def _require_columns(place: Path | str, columns: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise ValueError(
            f"{place} needs the columns {', '.join(map(repr, wanted))}, but "
            f"{', '.join(map(repr, missing))} is not among its columns: "
            f"{', '.join(map(repr, columns)) or 'none (the file is empty)'}. "
            f"{near_names(missing[0], columns)}Name the columns with data.text, data.text_pair and "
            "data.label."
        )
    repeated = [name for name in wanted if list(columns).count(name) > 1]
    if repeated:
        raise ValueError(
            f"{place} needs one column {repeated[0]!r}, but its header holds "
            f"{list(columns).count(repeated[0])}. Rename one of them."
        )


@contextlib.contextmanager
def _unlimited_fields() -> Iterator[None]:
    """Lifts the csv module's limit of 131,072 characters a field, which whole documents exceed."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _split_file(folder: Path, split: str) -> Path:
    found = [
        folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").exists()
    ]
    if len(found) == 1:
        return found[0]
    came = (
        f"{len(found)} are there: {', '.join(file.name for file in found)}"
        if found
        else (
            "it holds "
            f"{', '.join(sorted(entry.name for entry in folder.iterdir())[:12]) or 'nothing'}"
        )
    )
    raise FileNotFoundError(
        f"data folder {str(folder)!r} needs exactly one file {split}.csv, {split}.tsv or "
        f"{split}.jsonl, but {came}. Keep one file for each of {', '.join(SPLITS)}, or give a "
        "single file to have it split."
    )


def _folder_splits(
    folder: Path, rows: dict[str, list[Row]], classes: Classes
) -> dict[str, TextRecords]:
    train = {(row.text, row.pair) for row in rows["train"]}
    splits = {}
    for split, part in rows.items():
        shared = 0 if split == "train" else sum((row.text, row.pair) in train for row in part)
        note = (
            f"{shared} of {len(part)} {split} texts are in the train split too." if shared else ""
        )
        splits[split] = _records(part, classes, folder, split, 0, note)
    return require_examples(splits, remedy="Add rows to that file.")


def _labels(rows: Sequence[Row]) -> list[tuple[str, object]]:
    return [(row.place, row.label) for row in rows]


def _records(
    rows: Sequence[Row], classes: Classes, path: Path, split: str, duplicates: int, note: str = ""
) -> TextRecords:
    return TextRecords(
        texts=tuple(row.text for row in rows),
        pairs=None if not rows or rows[0].pair is None else tuple(row.pair or "" for row in rows),
        labels=np.asarray(classes.ids(_labels(rows)), np.int32),
        label_names=classes.names,
        name=str(path),
        split=split,
        duplicates=duplicates,
        note=note,
    )
