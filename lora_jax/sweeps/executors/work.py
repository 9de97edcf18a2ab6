"""What every worker does, wherever it runs: its own share of the sweep first, then whatever the
others have not claimed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_jax.config import Config, from_config_dict, to_dict
from lora_jax.core.hosts import is_leader, seat_at
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.runner import run_sweep
from lora_jax.sweeps.store import RunStore
from lora_jax.training.following import agreement, follow, one_of
from lora_jax.training.sharing import groups


@dataclass(frozen=True)
class Launch:
    """One start of a sweep by several workers. `config.out` is absolute; `since` is its time, in
    seconds since 1970.

    `score_test` is as in `run_sweep`. `folder` is where relative names of data and models in the
    config are looked up.
    """

    config: Config
    workers: int
    since: float
    command: tuple[str, ...]
    folder: str
    score_test: bool = True

    def order(self) -> dict[str, Any]:
        """What a worker is told, as plain values, which are read before anything is imported."""
        fields = dataclasses.fields(self)
        return {one.name: to_dict(getattr(self, one.name)) for one in fields}

    @classmethod
    def of(cls, order: Mapping[str, Any]) -> Launch:
        """The launch that told this."""
        config, command = from_config_dict(order["config"]), tuple(order["command"])
        return cls(**{**order, "config": config, "command": command})


def share(launch: Launch, worker: int) -> list[Config]:
    """The runs that worker `worker` (from 0) begins with: neighbours in the order that shares most
    compiled programs.
    """
    runs = _in_order(launch.config)
    return runs[worker * len(runs) // launch.workers : (worker + 1) * len(runs) // launch.workers]


def unfinished(launch: Launch) -> list[Config]:
    """The runs that nobody works on and that have not ended since the launch."""
    store = RunStore(launch.config.out)

    def is_left(run: Config) -> bool:
        state = store.state(run_id(run))
        failed_before = state.status == "failed" and (state.updated or 0) < launch.since
        lacks_test = state.status == "done" and not store.is_done(
            run_id(run), score_test=launch.score_test
        )
        return state.status in ("pending", "interrupted") or failed_before or lacks_test

    return [run for run in _in_order(launch.config) if is_left(run)]


def work(launch: Launch, worker: int, say: Callable[[str], None]) -> int:
    """Runs what no other worker has claimed until nothing is left; the number of runs that this
    worker finished.

    Raises:
        Interrupted: a signal came; the run has a checkpoint.
    """
    _enter(launch)
    tried: set[str] = set()
    finished = 0
    # The others' runs from their ends: they are at work on the beginnings.
    runs, stealing = share(launch, worker), False
    while runs or not stealing:
        outcome = run_sweep(
            launch.config,
            runs=runs,
            since=launch.since,
            score_test=launch.score_test,
            command=launch.command,
            say=say,
            quiet=True,
        )
        finished += len(outcome.done)
        tried.update((*outcome.done, *outcome.failed))
        if stealing and not outcome.done and not outcome.failed:
            break
        runs, stealing = (
            [run for run in reversed(unfinished(launch)) if run_id(run) not in tried],
            True,
        )
    return finished


def work_together(launch: Launch, worker: int, say: Callable[[str], None], *part: Any) -> int:
    """`work` of a worker that is several processes, as its process 0; the others take part.

    Args:
        part: the fields of a `lora_jax.sweeps.executors.worker.Part`.

    Raises:
        Interrupted: a signal came to one of them; the run has a checkpoint.
    """
    _enter(launch)
    number, count, name, host = part
    file = Path(launch.config.out) / ".meetings" / name
    try:
        seat = seat_at(file, count, number, host)
        with one_of(seat, agreement(launch.config)):
            if is_leader():
                return work(launch, worker, say)
            follow()
    finally:
        if number == 0:
            file.unlink(missing_ok=True)
    return 0


def _enter(launch: Launch) -> None:
    if os.path.isdir(launch.folder):
        os.chdir(launch.folder)


def last_words(error: BaseException) -> str:
    """The end of an error that holds a worker's traceback: its last line, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _in_order(config: Config) -> list[Config]:
    return [run for _, members in groups(expand(config)) for run in members]


def parse_options(
    options: dict[str, str], known: Sequence[str], executor: str
) -> dict[str, int | str]:
    """The options with whole numbers as such.

    Raises:
        ValueError: one that the executor does not have.
    """
    for name in options:
        if name not in known:
            raise ValueError(
                f"Executor {executor} has no option {name!r}. Its options: "
                f"{', '.join(known) or 'none'}."
            )
    return {
        name: int(value) if value.lstrip("-").isdigit() else value
        for name, value in options.items()
    }
