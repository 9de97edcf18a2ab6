"""The result store: one folder a run, written so that a kill at any moment loses no more than a line.

RUNS/<run_id>/ holds config.json, environment.json, status.json, metrics.jsonl, result.json (when done) and log.txt.
A run that was killed is left with status 'running' and a lock of a dead process: it reads as 'interrupted'.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_jax.config import Config, to_dict
from lora_jax.sweep.lock import Lock, RunLocked
from lora_jax.sweep.provenance import environment

__all__ = ["Metrics", "RunLocked", "RunRecord", "RunStore", "StoreError", "environment", "write_json"]

Status = Literal["pending", "running", "interrupted", "done", "failed"]


class StoreError(OSError):
    """The disk refused: full, read-only, not ours, or a file stands where a folder must."""


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says. `result` is there exactly if `status` is done, `error` if it is failed."""

    run_id: str
    folder: Path
    status: Status
    error: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Metrics:
    """Rows of metrics.jsonl as written, and how many lines could not be read (a kill leaves at most one)."""

    rows: Sequence[Mapping[str, Any]]
    ignored: int


class RunStore:
    """Folder of runs. `start` takes the run's lock; `finish`, `fail` and `release` give it back."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._locks: dict[str, Lock] = {}

    def folder(self, run_id: str) -> Path:
        """The folder of a run, which need not exist.

        Raises:
            ValueError: `run_id` is not a plain name.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", run_id):
            raise ValueError(f"A run id is made of letters, digits and . _ + -, got {run_id!r}. Use lora_jax.sweep.run_id.")
        return self.root / run_id

    def start(self, run_id: str, config: Config | Mapping[str, Any], environment: Mapping[str, Any]) -> Path:
        """The run's folder, locked for this process, with its config and environment written and status 'running'.

        A run that failed or was interrupted may be started again; its metrics and checkpoints stay.

        Raises:
            RunLocked: a live process holds the run.
            ValueError: the run is done: its result is kept.
            StoreError: the folder cannot be written.
        """
        folder = self.folder(run_id)
        with _disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = Lock(folder / "lock")
            lock.acquire()
        if self.status(run_id) == "done":
            lock.release()
            raise ValueError(f"Run {run_id} is done and is not run again. To repeat it, delete {folder} first.")
        self._locks[run_id] = lock
        try:
            write_json(folder / "config.json", to_dict(config) if isinstance(config, Config) else config)
            write_json(folder / "environment.json", environment)
            self._set_status(run_id, "running")
        except BaseException:
            self.release(run_id)
            raise
        return folder

    def finish(self, run_id: str, result: Mapping[str, Any]) -> None:
        """Writes the result, then status 'done', and gives the lock back."""
        write_json(self.folder(run_id) / "result.json", result)
        self._set_status(run_id, "done")
        self.release(run_id)

    def fail(self, run_id: str, exception: BaseException) -> None:
        """Records the exception in status.json, appends its traceback to log.txt, and gives the lock back."""
        text = "".join(traceback.format_exception(exception))
        try:
            with _disk(self.folder(run_id)), (self.folder(run_id) / "log.txt").open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} failed\n{text}")
            self._set_status(run_id, "failed", f"{type(exception).__name__}: {exception}")
        finally:
            self.release(run_id)

    def release(self, run_id: str) -> None:
        """Gives the lock back without a verdict: a run stopped on purpose then reads as 'interrupted'."""
        lock = self._locks.pop(run_id, None)
        if lock is not None:
            lock.release()

    def status(self, run_id: str) -> Status:
        """'pending' (no such run yet), 'running', 'interrupted' (nobody runs it any more), 'done' or 'failed'."""
        return _read_status(self.folder(run_id))[0]

    def runs(self) -> list[RunRecord]:
        """Every run in the store by name; folders that are no runs are skipped, unreadable runs count as failed."""
        if not self.root.is_dir():
            return []
        folders = sorted(path for path in self.root.iterdir() if is_run(path))
        return [read_run(folder) for folder in folders]

    def metrics(self, run_id: str) -> Metrics:
        """The rows that the run has logged; a half-written last line is ignored and counted."""
        return read_metrics(self.folder(run_id) / "metrics.jsonl")

    def write_plan(self, run_ids: Sequence[str]) -> None:
        """Adds the ids to plan.json, so that a report can say which runs of the sweep are still to come."""
        with _disk(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.root / "plan.json", list(dict.fromkeys([*self.planned(), *run_ids])))

    def planned(self) -> list[str]:
        """The ids that `write_plan` was given so far."""
        path = self.root / "plan.json"
        return json.loads(path.read_text()) if path.is_file() else []

    def _set_status(self, run_id: str, status: Status, error: str | None = None) -> None:
        path = self.folder(run_id) / "status.json"
        write_json(path, {"status": status, "error": error, "updated": time.time()})


def is_run(folder: Path) -> bool:
    """Whether the folder was made by `RunStore.start`."""
    return (folder / "config.json").is_file() and (folder / "status.json").is_file()


def read_run(folder: Path) -> RunRecord:
    """The record of a run's folder. Damaged files make it a failed run that says so: the others can still be read."""
    status, error = _read_status(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        seen = folder / "environment.json"
        surroundings = json.loads(seen.read_text()) if seen.is_file() else {}
        result = json.loads((folder / "result.json").read_text()) if status == "done" else None
    except (OSError, ValueError) as problem:
        return RunRecord(folder.name, folder, "failed", f"its files cannot be read: {problem}")
    return RunRecord(folder.name, folder, status, error, config, surroundings, result)


def read_metrics(path: Path) -> Metrics:
    """The rows of a metrics.jsonl; lines that are no JSON object are counted, not read. No file: no rows."""
    if not path.is_file():
        return Metrics((), 0)
    rows, ignored = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            ignored += 1
    return Metrics(tuple(rows), ignored)


def write_json(path: Path, value: Any) -> None:
    """Replaces the file in one step: a reader sees the old text or the new one, never half. NaN becomes null."""
    write_text(path, json.dumps(_jsonable(value), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces the file in one step; the bytes are on the disk before the name is.

    Raises:
        StoreError: the disk is full or the folder cannot be written; the old file is kept.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with _disk(path):
        try:
            with new.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)


def _read_status(folder: Path) -> tuple[Status, str | None]:
    path = folder / "status.json"
    if not path.is_file():
        return "pending", None
    try:
        content = json.loads(path.read_text())
        status, error = content["status"], content.get("error")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        return "failed", f"status.json cannot be read: {problem}"
    if status == "running" and not Lock(folder / "lock").is_held():
        return "interrupted", None
    return status, error


def _jsonable(value: Any) -> Any:
    """`value` with numpy and JAX scalars as numbers, paths as text, dataclasses as dicts, and NaN as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turns what the operating system says into a paragraph that names the path and what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The result store must be able to write {path}, but the system says: {error.strerror or error}. "
            "Free some space, make the folder writable, or choose another one with --config.out=FOLDER; "
            "finished runs are kept and are not run again."
        ) from error
