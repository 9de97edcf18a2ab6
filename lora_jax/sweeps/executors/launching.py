"""Several workers on one sweep, by one of the executors, round by round until nothing is left."""

from __future__ import annotations

import difflib
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lora_jax.config import Config
from lora_jax.sweeps.executors.work import Launch, unfinished
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.runner import Outcome
from lora_jax.sweeps.store import RunStore

# Each module has start(launch, options, say) -> number of workers that died: it returns when no
# worker is left.
EXECUTORS = {"processes": "processes", "ray": "ray_cluster", "slurm": "slurm"}
_MOST_ROUNDS = 4


def run_on(
    config: Config,
    executor: str,
    workers: int,
    *,
    options: Mapping[str, str] | None = None,
    score_test: bool = True,
    command: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Outcome:
    """As `run_sweep`, by several workers that share the store: each takes the runs that no other
    has claimed.

    A worker that is killed loses the steps since its run's last checkpoint; another goes on from
    there. Workers must see the store's folder under the same path.

    Args:
        executor: a name in EXECUTORS.
        workers: how many.
        options: of the executor, see its module.
        score_test: as in `run_sweep`.
        say: gets each worker's lines.

    Raises:
        ValueError: an unknown executor or option, or fewer than one worker.
        ModuleNotFoundError: the extra of this executor is not installed.
        RuntimeError: workers died and runs are left: the same call goes on with them.
        KeyboardInterrupt: a signal came; workers have stopped between two steps, with a checkpoint.
    """
    if executor not in EXECUTORS:
        near = difflib.get_close_matches(executor, EXECUTORS, 1)
        more = f" Nearest: {near[0]!r}." if near else ""
        raise ValueError(f"An executor is one of {', '.join(EXECUTORS)}, got {executor!r}.{more}")
    if workers < 1:
        raise ValueError(f"A sweep needs at least one worker, got {workers}.")

    module = importlib.import_module(f"lora_jax.sweeps.executors.{EXECUTORS[executor]}")
    config = replace(config, out=str(Path(config.out).resolve()))
    names = [run_id(run) for run in expand(config)]
    store = RunStore(config.out)
    store.write_plan(names)
    kept = [name for name in names if store.is_done(name, score_test=score_test)]
    if kept:
        say(f"{len(kept)} runs done before, kept")

    launch = Launch(config, workers, time.time(), tuple(command), str(Path.cwd()), score_test)
    for _ in range(_MOST_ROUNDS):
        died = module.start(launch, dict(options or {}), say)
        left = unfinished(launch)
        if not left or not died:
            break
    if left and died:
        raise RuntimeError(
            f"{len(left)} of {len(names)} runs are left, such as {run_id(left[0])}, and the "
            "workers that should run them died. Run the same command again: it goes on with them."
        )

    states = {name: store.status(name) for name in names}
    return Outcome(
        done=tuple(name for name in names if states[name] == "done" and name not in set(kept)),
        kept=tuple(kept),
        failed=tuple(name for name in names if states[name] == "failed"),
        elsewhere=tuple(name for name in names if states[name] == "running"),
    )
