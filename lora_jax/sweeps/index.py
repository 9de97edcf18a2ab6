"""index.jsonl: every change of a run's status, so that thousands of runs are listed without opening
their files.

One JSON object a line, appended and never changed. It holds nothing that the run folders do not
hold: a line counts only while the files that it was made from have the size and the time that it
notes, otherwise the folder is read. Deleting the file loses nothing but time.

It is no SQLite file, although that would do the listing: stores lie on network file systems, where
SQLite's locks are not to be relied on and a write-ahead log does not work at all, and several
machines write to one store. An append of one short line needs no lock but that of the append, a
damaged line costs one look into a folder, and any text tool reads it, as does
`pandas.read_json("index.jsonl", lines=True)`. There are three kinds of lines:

    a change of status; the rest is read from the folder again
        {"time", "run_id", "status", "error"}
    done or failed: all that a list needs, the environment by its digest
        {"time", "run_id", "status", "error", "config", "environment", "result", "files"}
    an environment, once for all its runs
        {"time", "environment", "is"}
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_jax.sweeps.files import append_line, jsonable, read_lines, without_collection, write_text
from lora_jax.sweeps.records import RunRecord, is_run, make_record, make_state, read_run

NAME = "index.jsonl"
_FINAL = ("done", "failed")
_FILES = ("status.json", "config.json", "result.json")


def list_runs(root: Path) -> tuple[list[RunRecord], int]:
    """(every run in the folder by name, how many of them had to be read from their own files
    because the index did not know them).
    """
    with without_collection():
        latest, environments = _latest(root)
    records, read = [], 0
    for entry in _folders(root):
        known = latest.get(entry.name)
        if known is not None and known["files"] == signature(entry):
            records.append(_record(Path(entry), known, environments))
        elif is_run(Path(entry)):
            records.append(read_run(Path(entry)))
            read += records[-1].status in _FINAL
    return records, read


def note(root: Path, run_id: str, status: str) -> None:
    """Appends a change of a run that is not final: readers look into its folder until the next
    line.
    """
    append_line(
        root / NAME,
        {"time": round(time.time(), 3), "run_id": run_id, "status": status, "error": None},
    )


def note_final(root: Path, record: RunRecord, written: set[str]) -> None:
    """Appends all that a list needs of a run that is done or failed. `written` are the environments
    that this process has noted.
    """
    environment = _digest(record.environment)
    if environment not in written:
        append_line(root / NAME, _environment_line(record))
        written.add(environment)
    append_line(root / NAME, _line(record))


def rebuild(root: Path) -> list[RunRecord]:
    """Every run, read from its own files, and the index written anew from them in one step.

    Raises:
        StoreError: the index cannot be written.
    """
    records = [read_run(Path(entry)) for entry in _folders(root) if is_run(Path(entry))]
    final = [record for record in records if record.status in _FINAL]
    lines = [
        *{_digest(record.environment): _environment_line(record) for record in final}.values(),
        *map(_line, final),
    ]
    write_text(
        root / NAME,
        "".join(json.dumps(jsonable(line), separators=(",", ":")) + "\n" for line in lines),
    )
    return records


def add_missing(root: Path, records: Iterable[RunRecord]) -> None:
    """Appends the final runs among `records` that the index does not know, so that the next list is
    quick.
    """
    latest, environments = _latest(root)
    written = set(environments)
    for record in records:
        known = latest.get(record.run_id, {}).get("files")
        if record.status in _FINAL and known != signature(record.folder):
            note_final(root, record, written)


def signature(folder: os.DirEntry[str] | Path) -> list[list[int]]:
    """Time (ns) and size of the files that a line is made from; [] for one that is not there."""
    found = []
    for name in _FILES:
        try:
            stat = os.stat(f"{os.fspath(folder)}/{name}")
            found.append([stat.st_mtime_ns, stat.st_size])
        except OSError:
            found.append([])
    return found


def _folders(root: Path) -> list[os.DirEntry[str]]:
    with os.scandir(root) as entries:
        return sorted((entry for entry in entries if entry.is_dir()), key=lambda entry: entry.name)


def _latest(root: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """(the final line of each run that no later line revokes, environments by digest)."""
    latest: dict[str, dict[str, Any]] = {}
    environments: dict[str, dict[str, Any]] = {}
    for line in read_lines(root / NAME)[0]:
        run_id = line.get("run_id")
        if "is" in line:
            environments[str(line.get("environment"))] = line["is"]
        elif not isinstance(run_id, str):
            continue  # no line of ours
        elif "files" in line:
            latest[run_id] = line
        else:
            latest.pop(run_id, None)
    return latest, environments


def _record(
    folder: Path, line: dict[str, Any], environments: dict[str, dict[str, Any]]
) -> RunRecord:
    try:
        state = make_state({**line, "updated": line["time"]})
        # Raises KeyError where the environment's line was half written.
        return make_record(
            folder, state, line["config"], environments[line["environment"]], line["result"]
        )
    except (KeyError, TypeError, ValueError):
        return read_run(folder)  # The folder is the truth; an index line may be damaged.


def _line(record: RunRecord) -> dict[str, Any]:
    return {
        "time": record.updated,
        "run_id": record.run_id,
        "status": record.status,
        "error": record.error,
        "config": record.config,
        "environment": _digest(record.environment),
        "result": None if record.result is None else record.result.to_json(),
        "files": signature(record.folder),
    }


def _environment_line(record: RunRecord) -> dict[str, Any]:
    return {
        "time": record.updated,
        "environment": _digest(record.environment),
        "is": record.environment,
    }


def _digest(environment: Any) -> str:
    text = json.dumps(jsonable(environment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
