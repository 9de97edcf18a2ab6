"""The result store: one folder a run, written so that a kill at any moment loses no more than a
line.

    RUNS/store.json         {"format", "lora_jax"}: which layout this is; a newer one is refused
    RUNS/plan.json          ids of all runs that sweeps have planned here
    RUNS/tuning.json        what was tuned for each cell, and which runs are of tuning (tuned.py)
    RUNS/index.jsonl        every change of a status: thousands of runs are listed fast (index.py)
    RUNS/renamed.json       old and new names, in a store that was brought up (renaming.py)
    RUNS/<run_id>/
        config.json         all settings, nested
        environment.json    versions, device, git commit, command, contents of data and model
        status.json         {"status", "error", "updated", "attempts"}
        metrics.jsonl       a row a logged step and split: {"step", "split", "loss", ..., "time"}
        result.json         the scores and sizes, once the run is done
        log.txt             who started it, how it ended, tracebacks
        sinks.json          which rows W&B or MLflow have got, and under which id
        adapter/ checkpoints/ tensorboard/ wandb/
        best/               the best epoch so far of a run that takes it (train.select)
        predictions/        what the run gave on each test example
        lock                the claim of the process that runs it (lock.py)

Files are replaced in one step or appended to, never edited; the run folders are the truth, and
index.jsonl can be made again from them (`RunStore.rebuild_index`). A run that was killed is left
with status 'running' and the lock of a dead process: it reads as 'interrupted', and the next
launcher goes on from its newest checkpoint. With pandas: `read_json("index.jsonl", lines=True)`,
`read_json(".../metrics.jsonl", lines=True)`, or flat tables of everything by
`lora-jax export runs RUNS --out runs.csv`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lora_jax.sweeps.index as index
from lora_jax.config import Config, config_hash, from_config_dict, to_dict
from lora_jax.core.json_files import parse_json
from lora_jax.io.contents import changed_contents
from lora_jax.sweeps.files import StoreError, disk, read_lines, turns, write_json, write_text
from lora_jax.sweeps.lock import Lock, RunLocked
from lora_jax.sweeps.provenance import environment, version
from lora_jax.sweeps.records import (
    RunRecord,
    State,
    Status,
    is_run,
    read_run,
    read_state,
)
from lora_jax.sweeps.renaming import rename_runs
from lora_jax.sweeps.settings import changed_settings
from lora_jax.training.result import RunResult

__all__ = [
    "FORMAT", "RunConflict", "RunDone", "RunLocked", "RunRecord", "RunStore", "Status", "StoreError", "StoreVersionError",
    "environment", "is_run", "read_run", "write_json", "write_text",
]  # fmt: skip

# 1 had no store.json and no index.jsonl, 2 other ids: both are read as they are, and their runs
# renamed when something is to be written.
FORMAT = 3
_BALLAST_BYTES = 32_768


class RunDone(ValueError):
    """The run is done: its result is kept, and it is not run again."""


class RunConflict(ValueError):
    """The store holds another run under this id."""


class StoreVersionError(ValueError):
    """The store has a layout that this version does not know."""


class RunStore:
    """Folder of runs. `start` takes the run's claim; `finish`, `fail` and `release` give it
    back.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._locks: dict[str, Lock] = {}
        self._environments: set[str] = set()
        self._checked = False

    def folder(self, run_id: str) -> Path:
        """The folder of a run, which need not exist.

        Raises:
            ValueError: `run_id` is not a plain name.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", run_id):
            raise ValueError(
                f"A run id is made of letters, digits and . _ + -, got {run_id!r}. Use "
                "lora_jax.sweeps.run_id."
            )
        return self.root / run_id

    def start(
        self,
        run_id: str,
        config: Config | Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        score_test: bool = True,
    ) -> Path:
        """The run's folder, claimed for this process, with its config and environment written and
        status 'running'.

        A run that failed or was interrupted may be started again, and so may one that is done, to
        be scored on the test split; its metrics and checkpoints stay.

        Raises:
            RunLocked: a live process holds the run.
            RunDone: the run is done (`is_done`): its result is kept.
            RunConflict: the folder holds a run of other content.
            StoreVersionError: the store has another layout.
            StoreError: the folder cannot be written.
        """
        folder = self.folder(run_id)
        self._check_version(write=True)
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = Lock(folder / "lock")
            lock.acquire()
        self._locks[run_id] = lock
        try:
            self.check_content(run_id, config, environment.get("contents") or {})
            before = read_state(folder)
            if self.is_done(run_id, score_test=score_test):
                raise RunDone(
                    f"Run {run_id} is done and is not run again. To repeat it, delete {folder} "
                    "first."
                )
            with disk(folder):
                (folder / ".ballast").write_bytes(b"\0" * _BALLAST_BYTES)
            write_json(
                folder / "config.json", to_dict(config) if isinstance(config, Config) else config
            )
            write_json(folder / "environment.json", environment)
            # Held by this process now, so what is still called running was left by one that died.
            died = before.attempts if before.status == "running" else 0
            self._set_state(run_id, State("running", attempts=1 + died))
            self._log(
                run_id,
                f"started by process {os.getpid()} on {socket.gethostname()}"
                + (f", try {1 + died}" if died else ""),
            )
            index.note(self.root, run_id, "running")
        except BaseException:
            self._unlock(run_id)
            raise
        return folder

    def progressed(self, run_id: str) -> None:
        """Forgets the processes that died on the run: it has a checkpoint from this one.

        Raises:
            RunLocked, FileNotFoundError: as `finish`.
        """
        self._check_mine(run_id)
        if read_state(self.folder(run_id)).attempts > 1:
            self._set_state(run_id, State("running", attempts=1))

    def finish(
        self, run_id: str, result: RunResult, contents: Mapping[str, str] | None = None
    ) -> None:
        """Writes the result, then status 'done', and gives the claim back.

        Args:
            contents: what its data and model were when they were read: a name may have been
                fetched, or its file written anew, after the run was claimed.

        Raises:
            RunLocked: another machine has taken the run over, because this one did not answer for
                so long: its result counts.
            FileNotFoundError: the run's folder was removed.
        """
        self._check_mine(run_id)
        folder = self.folder(run_id)
        known = read_run(folder).environment
        if contents and {**(known.get("contents") or {}), **contents} != known.get("contents"):
            write_json(folder / "environment.json", {**known, "contents": dict(contents)})
        write_json(folder / "result.json", result.to_json())
        self._set_state(run_id, State("done"))
        self._log(run_id, "done")
        self._note_final(run_id)
        self._unlock(run_id)

    def _check_mine(self, run_id: str) -> None:
        lock = self._locks.get(run_id)
        if lock is None or lock.is_mine():
            return
        owner = lock.owner()
        self._unlock(run_id)
        if not owner:
            raise FileNotFoundError(f"{self.folder(run_id)} was removed while the run was trained.")
        raise RunLocked(
            f"Run {run_id} was taken over by another process while this one did not answer; "
            "this result is dropped."
        )

    def fail(self, run_id: str, exception: BaseException) -> None:
        """Records the exception in status.json, appends its traceback to log.txt, and gives the
        claim back.

        Works on a full disk: the run's ballast file makes room for it.

        Raises:
            StoreError: not even that helps.
        """
        text = "".join(traceback.format_exception(exception))
        folder = self.folder(run_id)
        try:
            (folder / ".ballast").unlink(missing_ok=True)
            self._set_state(run_id, State("failed", f"{type(exception).__name__}: {exception}"))
            self._log(run_id, f"failed\n{text.rstrip()}")
            self._note_final(run_id)
        finally:
            self._unlock(run_id)

    def release(self, run_id: str) -> None:
        """Gives the claim back without a verdict: a run stopped on purpose then reads as
        'interrupted'.
        """
        try:
            if run_id in self._locks and read_state(self.folder(run_id)).status == "running":
                self._set_state(run_id, State("interrupted"))
                self._log(run_id, "stopped")
                index.note(self.root, run_id, "interrupted")
        finally:
            self._unlock(run_id)

    def status(self, run_id: str) -> Status:
        """'pending' (no such run yet), 'running', 'interrupted' (nobody runs it any more), 'done'
        or 'failed'.
        """
        return self.state(run_id).status

    def is_done(self, run_id: str, *, score_test: bool = True) -> bool:
        """Whether there is nothing left to do of the run: it is done, and has test scores if these
        are asked for.
        """
        if self.status(run_id) != "done":
            return False
        result = read_run(self.folder(run_id)).result
        return result is None or result.is_tested or not score_test

    def state(self, run_id: str) -> State:
        """The status with its time, its error and how many processes died on the run."""
        return read_state(self.folder(run_id))

    def check_content(
        self,
        run_id: str,
        config: Config | Mapping[str, Any],
        contents: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing, if the store holds no such run yet or one of the same settings and, as far as is
        known, of the same `contents` of its data and model (`lora_jax.io.contents.contents`).

        Raises:
            RunConflict: it holds another one; what differs is named. A run that has learnt nothing
                yet does not hold on to its contents.
        """
        folder = self.folder(run_id)
        if not is_run(folder):
            return
        there = read_run(folder)
        wanted = to_dict(config) if isinstance(config, Config) else json.loads(json.dumps(config))
        if there.config and there.config != wanted:
            self._check_settings(there, wanted)

        changed = changed_contents(there.environment.get("contents") or {}, contents or {})
        learnt = there.status == "done" or any(folder.glob("checkpoints/[0-9]*"))
        if changed and learnt:
            raise RunConflict(
                f"Run {run_id} is in the store, and what it was made of has changed since: "
                f"{', '.join(changed)}. One id must mean one run: choose another --config.out, or "
                f"move {folder} away to train it again. What is there was kept."
            )

    def _check_settings(self, there: RunRecord, wanted: Mapping[str, Any]) -> None:
        try:
            then, now = from_config_dict(there.config), from_config_dict(wanted)
        except (KeyError, TypeError, ValueError) as unreadable:
            by = (there.environment.get("versions") or {}).get("lora_jax", "of unknown version")
            raise RunConflict(
                f"Run {there.run_id} is in the store with settings that this version cannot read: "
                f"{unreadable} It was written by lora_jax {by}. Choose another --config.out."
            ) from unreadable
        if config_hash(then) != config_hash(now):
            raise RunConflict(
                f"Run {there.run_id} is in the store with other content: "
                f"{changed_settings(then, now)}. One id must mean one run: choose another "
                f"--config.out, or move {there.folder} away. What is there was kept."
            )

    def runs(self) -> list[RunRecord]:
        """Every run in the store by name; folders that are no runs are skipped, unreadable runs
        count as failed.

        Raises:
            StoreVersionError: the store has another layout.
        """
        if not self.root.is_dir():
            return []
        self._check_version()
        records, read = index.list_runs(self.root)
        if read:
            with contextlib.suppress(OSError):  # A store that can only be read is still a store.
                index.add_missing(self.root, records)
        return records

    def rebuild_index(self) -> int:
        """Makes index.jsonl anew from the run folders; the number of runs. Past changes of status
        are forgotten.
        """
        self._check_version()
        return len(index.rebuild(self.root))

    def history(self) -> list[dict[str, Any]]:
        """Every change of a status that the index holds, oldest first: {"time", "run_id", "status",
        "error"}.
        """
        lines, _ = read_lines(self.root / index.NAME)
        return [
            {key: line.get(key) for key in ("time", "run_id", "status", "error")}
            for line in lines
            if "run_id" in line
        ]

    def metrics(self, run_id: str) -> list[dict[str, Any]]:
        """The rows that the run has logged; a half-written line is left out."""
        return read_lines(self.folder(run_id) / "metrics.jsonl")[0]

    def write_plan(self, run_ids: Sequence[str]) -> None:
        """Adds the ids to plan.json, so that a report can say which runs of the sweep are still to
        come.
        """
        self._check_version(write=True)
        with disk(self.root), turns(self.root / ".plan_turn"):
            write_json(self.root / "plan.json", list(dict.fromkeys([*self.planned(), *run_ids])))

    def planned(self) -> list[str]:
        """The ids that `write_plan` was given so far. A plan that cannot be read is none: the next
        `write_plan` writes it anew.
        """
        self._check_version()
        try:
            plan = parse_json((self.root / "plan.json").read_bytes(), "plan.json")
        except (OSError, ValueError):
            return []
        return [str(name) for name in plan] if isinstance(plan, list) else []

    def _set_state(self, run_id: str, state: State) -> None:
        content = {
            "status": state.status,
            "error": state.error,
            "updated": time.time(),
            "attempts": state.attempts,
        }
        write_json(self.folder(run_id) / "status.json", content)

    def _log(self, run_id: str, text: str) -> None:
        # status.json says the same; a log must not end a run.
        with (
            contextlib.suppress(OSError),
            (self.folder(run_id) / "log.txt").open("a", encoding="utf-8") as log,
        ):
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _note_final(self, run_id: str) -> None:
        # The result is on the disk by now; an index that cannot be written costs the next reader a
        # look into the folder.
        (self.folder(run_id) / ".ballast").unlink(missing_ok=True)
        with contextlib.suppress(StoreError):
            index.note_final(self.root, read_run(self.folder(run_id)), self._environments)

    def _unlock(self, run_id: str) -> None:
        lock = self._locks.pop(run_id, None)
        if lock is not None:
            (self.folder(run_id) / ".ballast").unlink(missing_ok=True)
            lock.release()

    def _check_version(self, *, write: bool = False) -> None:
        if self._checked and not write:
            return
        path = self.root / "store.json"
        if path.is_file():
            try:
                made = parse_json(path.read_bytes(), path)
                format = made["format"]
            except (OSError, ValueError, KeyError, TypeError) as problem:
                raise StoreVersionError(
                    f"A store says its layout in {path}, but that cannot be read: {problem}. "
                    "Delete that file if the runs beside it are yours."
                ) from problem
            if format not in range(1, FORMAT + 1):
                raise StoreVersionError(
                    f"The store {self.root} has layout {format}, written by lora_jax "
                    f"{made.get('lora_jax')}; this is lora_jax {version()}, which reads layouts 1 "
                    f"to {FORMAT}. Install that version, or choose another folder with "
                    "--config.out=FOLDER."
                )
            older = format != FORMAT
        else:
            older = True

        if write and older:
            with disk(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
            if any(map(is_run, self.root.iterdir())):
                rename_runs(self.root)
            write_json(path, {"format": FORMAT, "lora_jax": version()})
        self._checked = True
