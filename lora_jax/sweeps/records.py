"""What a run's folder says, read without changing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lora_jax.core.json_files import read_json
from lora_jax.sweeps.lock import Lock
from lora_jax.sweeps.tuned import Curve
from lora_jax.training.result import RunResult

Status = Literal["pending", "running", "interrupted", "done", "failed"]


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says. `result` is there exactly if `status` is done, `error` if it is
    failed.

    `updated` is when the status was written, in seconds since 1970. `curve` is what tuning found of
    its cell, where it was run for one.
    """

    run_id: str
    folder: Path
    status: Status
    error: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    result: RunResult | None = None
    updated: float | None = None
    curve: Curve | None = None

    @property
    def is_scored(self) -> bool:
        """Whether the run counts: one that a cell was only tuned by does not, and has no test
        score.
        """
        untested = self.result is not None and not self.result.is_tested
        return not untested and (self.curve is None or self.run_id in self.curve.scored)


@dataclass(frozen=True)
class State:
    """The content of status.json. `attempts` counts the processes in a row that took the run and died
    without a word; it is 1 while the first one works.
    """

    status: Status
    error: str | None = None
    updated: float | None = None
    attempts: int = 0


# What is read of a run's settings and surroundings, and the types it must have where it is there.
_NUMBER = (int, float)
_CONFIG_TYPES = {
    "method": str, "model": Mapping, "model.name": str, "data": Mapping, "data.name": str, "data.mixture": list, "train": Mapping,
    "train.seed": int, "train.total_steps": int, "lora": Mapping, "lora.rank": int, "lora.targets": str,
    "quant": Mapping, "quant.format": str, "optim": Mapping,
}  # fmt: skip
_ENVIRONMENT_TYPES = {
    "git": Mapping,
    "git.commit": str,
    "device": Mapping,
    "versions": Mapping,
    "contents": Mapping,
}
_STATUS_TYPES = {"status": str, "error": str, "updated": _NUMBER, "attempts": int}
_STATUSES = get_args(Status)


def is_run(folder: Path) -> bool:
    """Whether the folder was made by `RunStore.start`."""
    return (folder / "config.json").is_file() and (folder / "status.json").is_file()


def read_run(folder: Path) -> RunRecord:
    """The record of a run's folder. Damaged files, and entries of another type than their place
    has, make it a failed run that says so: the others can still be read.
    """
    state = read_state(folder)
    try:
        seen, scored = folder / "environment.json", folder / "result.json"
        return make_record(
            folder,
            state,
            read_json(folder / "config.json"),
            read_json(seen) if seen.is_file() else {},
            read_json(scored) if state.status == "done" else None,
        )
    except (OSError, ValueError) as problem:
        error = f"its files cannot be read: {problem}"
        return RunRecord(folder.name, folder, "failed", error, updated=state.updated)


def make_record(
    folder: Path, state: State, config: Any, environment: Any, result: Any
) -> RunRecord:
    """The record that these contents of a run's files make.

    Raises:
        ValueError: one of them is no object, or an entry has another type; it is named.
    """
    _check_types("config.json", config, _CONFIG_TYPES)
    _check_plain("config.json", config)
    _check_types("environment.json", environment, _ENVIRONMENT_TYPES)
    if state.status == "done":
        _check_types("result.json", result, {})

    return RunRecord(
        folder.name,
        folder,
        state.status,
        state.error,
        config,
        environment,
        RunResult.from_json(result, config) if state.status == "done" else None,
        state.updated,
    )


def with_curves(records: Iterable[RunRecord], curves: Mapping[str, Curve]) -> list[RunRecord]:
    """The records of a store, each with the curve of the cell that it was run for."""
    known = {name: curve for curve in curves.values() for name in curve.tried}
    return [replace(record, curve=known.get(record.run_id)) for record in records]


def read_state(folder: Path) -> State:
    """What status.json says; 'running' without a live process reads as 'interrupted', no file as
    'pending'.
    """
    path = folder / "status.json"
    if not path.is_file():
        return State("pending")
    try:
        state = make_state(read_json(path))
    except (OSError, ValueError) as problem:
        return State("failed", f"status.json cannot be read: {problem}")
    if state.status == "running" and not Lock(folder / "lock").is_held():
        return State("interrupted", None, state.updated, state.attempts)
    return state


def make_state(content: Mapping[str, Any]) -> State:
    """The state that the content of status.json means.

    Raises:
        ValueError: there is no status, or an entry has another type.
    """
    _check_types("status.json", content, _STATUS_TYPES)
    status = content.get("status")
    if status not in _STATUSES:
        raise ValueError(f"status.json needs one of {', '.join(_STATUSES)}, got {status!r}")
    return State(status, content.get("error"), content.get("updated"), content.get("attempts") or 0)


def _check_plain(file: str, value: Any) -> None:
    """Nothing if a report can show and sort everything in it: whole numbers that no float holds and
    texts that no file can hold are in no run of ours.
    """
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        "".join(value).encode()
        for item in value.values():
            if type(item) is not float and item is not None:
                _check_plain(file, item)
    elif isinstance(value, list):
        for item in value:
            _check_plain(file, item)
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{file} holds a whole number of {len(str(value))} digits")


def _check_types(file: str, content: Any, types: Mapping[str, Any]) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds no JSON object")
    for key, kind in types.items():
        group, _, leaf = key.rpartition(".")
        # A group comes before its keys, so it is an object here.
        value = ((content.get(group) or {}) if group else content).get(leaf)
        # A yes or no is an int to Python, and none of these is one.
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f"{file} needs another type in {key!r}, got {value!r}")
        if isinstance(value, int) and abs(value) >> 63:
            raise ValueError(f"{file} holds a number in {key!r} of more than 63 bits")
