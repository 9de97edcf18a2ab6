"""What a run's folder says, read without changing it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_jax.sweeps.files import read_lines
from lora_jax.sweeps.lock import Lock

Status = Literal["pending", "running", "interrupted", "done", "failed"]


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says. `result` is there exactly if `status` is done, `error` if it is
    failed.

    `updated` is when the status was written, in seconds since 1970. `attempts` counts the processes
    in a row that took the run and died without a word; it is 1 while the first one works.
    """

    run_id: str
    folder: Path
    status: Status
    error: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    updated: float | None = None
    attempts: int = 0


@dataclass(frozen=True)
class Metrics:
    """Rows of metrics.jsonl as written, and how many lines could not be read (a kill leaves at most
    one).
    """

    rows: Sequence[Mapping[str, Any]]
    ignored: int


@dataclass(frozen=True)
class State:
    """The content of status.json."""

    status: Status
    error: str | None = None
    updated: float | None = None
    attempts: int = 0


def is_run(folder: Path) -> bool:
    """Whether the folder was made by `RunStore.start`."""
    return (folder / "config.json").is_file() and (folder / "status.json").is_file()


def read_run(folder: Path) -> RunRecord:
    """The record of a run's folder. Damaged files make it a failed run that says so: the others can
    still be read.
    """
    state = read_state(folder)
    try:
        config = _object(folder / "config.json")
        seen = folder / "environment.json"
        surroundings = _object(seen) if seen.is_file() else {}
        result = _object(folder / "result.json") if state.status == "done" else None
    except (OSError, ValueError) as problem:
        return RunRecord(
            folder.name,
            folder,
            "failed",
            f"its files cannot be read: {problem}",
            updated=state.updated,
        )
    return RunRecord(
        folder.name,
        folder,
        state.status,
        state.error,
        config,
        surroundings,
        result,
        state.updated,
        state.attempts,
    )


def read_state(folder: Path) -> State:
    """What status.json says; 'running' without a live process reads as 'interrupted', no file as
    'pending'.
    """
    path = folder / "status.json"
    if not path.is_file():
        return State("pending")
    try:
        content = _object(path)
        state = State(
            content["status"],
            content.get("error"),
            content.get("updated"),
            content.get("attempts", 0),
        )
    except (OSError, ValueError, KeyError) as problem:
        return State("failed", f"status.json cannot be read: {problem}")
    if state.status == "running" and not Lock(folder / "lock").is_held():
        return State("interrupted", None, state.updated, state.attempts)
    return state


def read_metrics(path: Path) -> Metrics:
    """The rows of a metrics.jsonl; lines that are no JSON object are counted, not read. No file: no
    rows.
    """
    rows, ignored = read_lines(path)
    return Metrics(tuple(rows), ignored)


def _object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return value
