"""Records of data files, one after the other: CSV, TSV, JSONL, JSON and Parquet, with the place of
every row that is wrong.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lora_jax.core.extras import needs
from lora_jax.core.json_files import loads

from .records import Problem, Problems, Record, near_names

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_file(path: Path, problems: Problems) -> Iterator[Record]:
    """The records of a file, read as they are asked for: memory does not grow with the file (a
    .json array apart).

    Rows that do not parse, or are not UTF-8, are reported to `problems`.

    Raises:
        FileNotFoundError, OSError: the file is missing or cannot be read.
        ValueError: an unknown suffix, no header, or no text in UTF-8 at all.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"A data file needs one of the suffixes {', '.join(SUFFIXES)}, but {str(path)!r} came. "
            "Rename or convert the file."
        )

    readers = {".jsonl": _json_lines, ".json": _json_array, ".parquet": _parquet, ".tsv": _tsv}
    try:
        if suffix != ".parquet":
            _require_utf_8(path)
        yield from readers.get(suffix, _csv)(path, problems)
    except FileNotFoundError as error:
        near = near_names(path.name, (entry.name for entry in path.parent.glob("*")))
        raise FileNotFoundError(
            f"Data file {str(path)!r} does not exist. {near}Give the path of a file that does."
        ) from error
    except OSError as error:
        raise OSError(
            f"Data file {str(path)!r} cannot be read: {error.strerror or error}. Check that it is "
            "a file and that you may read it."
        ) from error


def _require_utf_8(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) in _UTF_16:
            raise ValueError(
                f"Data file {str(path)!r} needs to be UTF-8, but is UTF-16. Convert it, for "
                "example: iconv -f utf-16 -t utf-8 A > B."
            )


def _json_lines(path: Path, problems: Problems) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if not line.strip():
                    continue
                fields = loads(line)
            except UnicodeDecodeError as error:
                problems.report(_not_utf_8(place, raw[error.start]))
            except json.JSONDecodeError as error:
                detail = f"this line is not JSON: {error.msg} (column {error.colno})."
                problems.report(Problem(place, "broken JSON", detail))
            except (ValueError, RecursionError) as error:
                # A number of thousands of digits, or thousands of brackets.
                detail = f"this line is no JSON that can be read: {error}."
                problems.report(Problem(place, "broken JSON", detail))
            else:
                yield from _object(place, "a line", fields, problems)


def _json_array(path: Path, problems: Problems) -> Iterator[Record]:
    try:
        values = loads(path.read_text(encoding="utf-8-sig"))
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
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not JSON that can be read: {error}. Write it as JSON lines."
        ) from error

    if isinstance(values, dict) and isinstance(values.get("data"), list):
        values = values["data"]
    if not isinstance(values, list):
        raise ValueError(
            f"{path} needs a JSON array of objects, but a {type(values).__name__} came. Write it "
            "as JSON lines (.jsonl)."
        )
    for number, fields in enumerate(values):
        yield from _object(f"{path}[{number}]", "an entry", fields, problems)


def _object(place: str, what: str, fields: Any, problems: Problems) -> Iterator[Record]:
    if isinstance(fields, dict):
        yield Record(place, fields)
    else:
        detail = f"{what} needs one JSON object, but a {type(fields).__name__} came."
        problems.report(Problem(place, "no JSON object", detail))


@contextlib.contextmanager
def _open_table(path: Path) -> Iterator[IO[str]]:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        # Undecodable bytes become lone surrogates, so that the row they stand in can be named.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file
    finally:
        csv.field_size_limit(limit)


def _csv(path: Path, problems: Problems) -> Iterator[Record]:
    with _open_table(path) as file:
        rows = csv.reader(file, strict=True)
        try:
            header = _header(path, next(rows, []))
        except csv.Error as error:
            raise ValueError(
                f"{path}: the header cannot be parsed: {error}. Double the quotes inside quotes."
            ) from None
        while True:
            line = rows.line_num + 1
            try:
                values = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                lines = f"{line}" if rows.line_num <= line else f"{line}-{rows.line_num}"
                detail = f"this row cannot be parsed: {error}; double the quotes inside quotes."
                problems.report(Problem(f"{path}:{lines}", "a row that cannot be parsed", detail))
                continue

            if values:
                yield from _row(f"{path}:{line}", header, values, problems)


def _tsv(path: Path, problems: Problems) -> Iterator[Record]:
    """Rows of one line each. A field may be quoted as in CSV; a quote that is not closed in its
    line is a quote.
    """
    with _open_table(path) as file:
        lines = (line.rstrip("\r\n") for line in file)
        header = _header(path, _fields(next(lines, "")))
        for number, line in enumerate(lines, 2):
            if line:
                yield from _row(f"{path}:{number}", header, _fields(line), problems)


def _fields(line: str) -> list[str]:
    # By itself the csv module would let a lone quote swallow all lines up to the next one.
    try:
        return next(csv.reader([line], delimiter="\t", strict=True))
    except csv.Error:
        return line.split("\t")


def _header(path: Path, header: list[str]) -> list[str]:
    if not header:
        raise ValueError(f"{path} is empty: its first line needs to name the columns.")
    if (byte := _undecoded(header)) is not None:
        raise ValueError(
            f"{path}: the header needs to be UTF-8, but holds the byte {byte:#04x}. Convert the "
            "file, for example: iconv -f latin1 -t utf-8 A > B."
        )
    if repeated := [name for name, count in collections.Counter(header).items() if count > 1]:
        raise ValueError(
            f"{path} has {header.count(repeated[0])} columns named {repeated[0]!r}. Rename one of "
            "them."
        )
    return header


def _row(place: str, header: list[str], values: list[str], problems: Problems) -> Iterator[Record]:
    if len(values) != len(header):
        detail = (
            f"a row needs {len(header)} fields ({', '.join(header)}), but {len(values)} came; "
            "quote fields that hold the delimiter."
        )
        problems.report(Problem(place, "another number of fields", detail))
    elif (byte := _undecoded(values)) is not None:
        problems.report(_not_utf_8(place, byte))
    else:
        yield Record(place, dict(zip(header, values)))


def _undecoded(values: list[str]) -> int | None:
    """The first byte that was not UTF-8, or None."""
    for value in values:
        if not value.isascii():
            for letter in value:
                if 0xDC80 <= ord(letter) <= 0xDCFF:
                    return ord(letter) - 0xDC00
    return None


def _not_utf_8(place: str, byte: int) -> Problem:
    return Problem(place, "bytes that are not UTF-8", f"byte {byte:#04x} is not UTF-8.")


def _parquet(path: Path, problems: Problems) -> Iterator[Record]:
    del problems  # A Parquet file is whole or not at all.
    with needs("parquet"):
        import pyarrow
        import pyarrow.parquet
    try:
        number, file = 0, pyarrow.parquet.ParquetFile(path)
        _header(path, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                yield Record(f"{path}[{number}]", fields)
                number += 1
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"{path} is no whole Parquet file: {str(error)[:200]}. Fetch it again."
        ) from error
