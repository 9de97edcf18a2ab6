"""Writing that a kill, a full disk or another process cannot leave half done."""

from __future__ import annotations

import csv
import dataclasses
import gc
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_jax.core.replacing import replacing

try:
    import fcntl
except ImportError:  # Windows: appends of one short write do not mix there either
    fcntl = None


class StoreError(OSError):
    """The disk refused: full, read-only, not ours, or a file stands where a folder must."""


def write_json(path: Path, value: Any) -> None:
    """Replaces the file in one step: a reader sees the old text or the new one, never half. NaN
    becomes null.
    """
    write_text(path, json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces the file in one step; the bytes are on the disk before the name is.

    Raises:
        StoreError: the disk is full or the folder cannot be written; the old file is kept.
    """
    with disk(path), replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Writes a table, as `write_text`; by default with every key of the rows. What a row lacks is
    empty.
    """
    text = io.StringIO()
    every = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, columns or list(every), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def append_line(path: Path, value: Any) -> None:
    """Adds one JSON line to a file that several processes append to. A half line that a kill left
    is closed first.

    Raises:
        StoreError: the disk is full; readers skip what was written of the line.
    """
    text = json.dumps(jsonable(value), allow_nan=False, separators=(",", ":")) + "\n"
    with disk(path), path.open("ab+") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(the JSON objects of a file with one a line, how many lines are none): a kill leaves half a
    line. No file: nothing.
    """
    if not path.is_file():
        return [], 0
    rows, ignored = [], 0
    for line in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
        row = _object(line)
        if row is not None:
            rows.append(row)
        elif line.strip():
            ignored += 1
    return rows, ignored


def last_line(path: Path, *, most_bytes: int = 8192) -> dict[str, Any] | None:
    """The last whole JSON object of such a file, found from its end; None if there is none in the
    last `most_bytes`.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
            lines = file.read().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return None
    return next((row for row in map(_object, reversed(lines)) if row is not None), None)


def _object(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def number(value: Any) -> float | None:
    """The value as a float; None if it is no finite number, as in a line that somebody else
    wrote.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def jsonable(value: Any) -> Any:
    """`value` with numpy and JAX scalars as numbers, paths as text, dataclasses as dicts, and NaN
    as None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


@contextmanager
def turns(path: Path) -> Iterator[None]:
    """One process at a time between here and the end of the block. The kernel ends the turn of a
    process that dies.
    """
    with path.open("w") as turn:
        if fcntl is not None:
            fcntl.flock(turn, fcntl.LOCK_EX)
        yield


@contextmanager
def without_collection() -> Iterator[None]:
    """Keeps Python's collector from looking through millions of new objects again and again, none
    of which is garbage yet.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turns what the operating system says into a paragraph that names the path and what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"A sweep, a report and an export must be able to write {path}, but the system says: "
            f"{error.strerror or error}. Free some space, make the folder writable, or choose "
            "another one (--config.out=FOLDER; of a report or an export --out); finished runs are "
            "kept and are not run again."
        ) from error
