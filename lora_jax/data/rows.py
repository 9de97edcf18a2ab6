"""Rows of data files, one after the other: CSV, TSV, JSONL, JSON and Parquet, with the place of
every row that is wrong.
"""

from __future__ import annotations

import collections
import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .records import near_names

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
OnError = Literal["stop", "skip"]
_SHOWN = 3  # places named for each reason


class Row(NamedTuple):
    """One record; `place` is 'file:line' (or 'file[row]') for messages."""

    place: str
    fields: Mapping[str, Any]


class Problems:
    """What is wrong with rows: an error at the first one under 'stop'; counted, with the first
    places, under 'skip'.

    `str()` is the sentence to print, empty if nothing was left out. `len()` is the number of rows
    left out.
    """

    def __init__(self, on_error: OnError = "stop") -> None:
        self.on_error = on_error
        self.counts: collections.Counter[str] = collections.Counter()
        self._places: dict[str, list[str]] = {}

    def report(self, place: str, reason: str, detail: str) -> None:
        """Raises a ValueError 'place: detail' under 'stop', else counts the row under `reason`."""
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


def read_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """The rows of a file, read as they are asked for: memory does not grow with the file (a .json
    array apart).

    Rows that do not parse, or are not UTF-8, are reported to `problems`.

    Raises:
        FileNotFoundError, OSError: the file is missing or cannot be read. ValueError: an unknown
            suffix, or no header.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"A data file needs one of the suffixes {', '.join(SUFFIXES)}, but {str(path)!r} came. "
            "Rename or convert the file."
        )
    readers = {".jsonl": _json_lines, ".json": _json_array, ".parquet": _parquet}
    try:
        yield from readers.get(suffix, _table)(path, problems)
    except FileNotFoundError as error:
        near = (
            near_names(path.name, (entry.name for entry in path.parent.glob("*")))
            if path.parent.is_dir()
            else ""
        )
        raise FileNotFoundError(
            f"Data file {str(path)!r} does not exist. {near}Give the path of a file that does."
        ) from error
    except OSError as error:
        raise OSError(
            f"Data file {str(path)!r} cannot be read: {error.strerror or error}. Check that it is "
            "a file and that you may read it."
        ) from error


def _json_lines(path: Path, problems: Problems) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problems.report(
                    place,
                    "bytes that are not UTF-8",
                    f"byte {raw[error.start]:#04x} is not UTF-8 ({error.reason}).",
                )
                continue
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                problems.report(
                    place,
                    "broken JSON",
                    f"this line is not JSON: {error.msg} (column {error.colno}).",
                )
                continue
            if isinstance(fields, dict):
                yield Row(place, fields)
            else:
                problems.report(
                    place,
                    "no JSON object",
                    f"a line needs one JSON object, but a {type(fields).__name__} came.",
                )


def _json_array(path: Path, problems: Problems) -> Iterator[Row]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.object[error.start]:#04x} is not UTF-8. Convert the file, or "
            "write it as JSON lines."
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno}). Are these JSON "
            "lines? Then name it .jsonl."
        ) from error
    if isinstance(values, dict) and isinstance(values.get("data"), list):
        values = values["data"]
    if not isinstance(values, list):
        raise ValueError(
            f"{path} needs a JSON array of objects, but a {type(values).__name__} came. Write it "
            "as JSON lines (.jsonl)."
        )
    for number, fields in enumerate(values):
        place = f"{path}[{number}]"
        if isinstance(fields, dict):
            yield Row(place, fields)
        else:
            problems.report(
                place,
                "no JSON object",
                f"an entry needs to be a JSON object, but a {type(fields).__name__} came.",
            )


def _table(path: Path, problems: Problems) -> Iterator[Row]:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        # Undecodable bytes become lone surrogates, so that the row they stand in can be named.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(
                file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
            )
            header = next(rows, [])
            if not header:
                raise ValueError(f"{path} is empty: its first line needs to name the columns.")
            if repeated := [
                name for name, count in collections.Counter(header).items() if count > 1
            ]:
                raise ValueError(
                    f"{path} has {header.count(repeated[0])} columns named {repeated[0]!r}. Rename "
                    "one of them."
                )
            while True:
                try:
                    values = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    problems.report(
                        f"{path}:{rows.line_num}",
                        "a row that cannot be parsed",
                        f"this row cannot be parsed: {error}.",
                    )
                    continue
                place = f"{path}:{rows.line_num}"
                if not values:
                    continue
                if len(values) != len(header):
                    detail = f"a row needs {len(header)} fields ({', '.join(header)}), but {len(values)} came; quote fields that hold the delimiter."
                    problems.report(place, "another number of fields", detail)
                elif wrong := next((value for value in values if _undecoded(value)), None):
                    byte = next(
                        ord(letter) - 0xDC00 for letter in wrong if 0xDC80 <= ord(letter) <= 0xDCFF
                    )
                    problems.report(
                        place, "bytes that are not UTF-8", f"byte {byte:#04x} is not UTF-8."
                    )
                else:
                    yield Row(place, dict(zip(header, values)))
    finally:
        csv.field_size_limit(limit)


def _undecoded(value: str) -> bool:
    return not value.isascii() and any(0xDC80 <= ord(letter) <= 0xDCFF for letter in value)


def _parquet(path: Path, problems: Problems) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files need the package 'pyarrow', which is not installed. Install it with: "
            "pip install 'lora-jax[tasks]'."
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                yield Row(f"{path}[{number}]", fields)
                number += 1
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"{path} is no whole Parquet file: {str(error)[:200]}. Fetch it again."
        ) from error
