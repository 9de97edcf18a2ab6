"""Workers as SLURM jobs, through submitit: an array of as many jobs as there are workers.

Options: cluster (none = SLURM, local = processes here, to try it out), and whatever submitit's
`update_parameters` takes, such as timeout_min, slurm_partition, cpus_per_task, gpus_per_node,
mem_gb, slurm_account, slurm_array_parallelism. With nodes=2 each worker is two nodes, one process
each (tasks_per_node), and its runs' mesh has the devices of both. A job that runs out of time or is preempted is
queued again and goes on. Logs lie in STORE/slurm. The store's folder must be one that all nodes
see. A launcher that is asked to stop cancels its jobs (with cluster=local, submitit's own processes
say so by a traceback).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_jax.core.extras import needs
from lora_jax.sweeps.executors.worker import Part, begin
from lora_jax.training.interrupted import Interrupted, stop_signals

if TYPE_CHECKING:
    from lora_jax.sweeps.executors.work import Launch

_PATIENCE = 60.0  # seconds in which cancelled jobs may end


class Work:
    """A job's callable: what submitit pickles, and calls again after a time limit or preemption."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.order = order

    def __call__(self, number: int) -> int:
        """Works; the number of runs finished.

        Raises:
            SystemExit: with status 130, where the job was asked to stop.
        """
        try:
            return begin(self.order, number, partial(print, flush=True), part_of(os.environ))
        except (Interrupted, KeyboardInterrupt) as stop:
            print(stop, flush=True)
            sys.exit(130)  # submitit would log an exception with its traceback

    def checkpoint(self, number: int) -> Any:
        """The same job once more: its runs go on from their checkpoints."""
        with needs("slurm"):
            from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, number)


def part_of(environment: Mapping[str, str]) -> Part:
    """This process among the tasks of its job. A job that is queued again keeps its id."""
    local = "SUBMITIT_LOCAL_NTASKS" in environment
    names = ("GLOBALID", "NTASKS", "JOB_ID") if local else ("PROCID", "NTASKS", "JOB_ID")
    prefix = "SUBMITIT_LOCAL_" if local else "SLURM_"
    number, count, job = (
        environment.get(prefix + name, other) for name, other in zip(names, ("0", "1", ""))
    )
    again = environment.get("SLURM_RESTART_COUNT", "0")
    return Part(int(number), int(count), f"slurm-{job}-{again}")


def start(launch: Launch, options: dict[str, str], say: Callable[[str], None]) -> int:
    """Submits the jobs and waits for all of them; how many ended with an error.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the jobs are cancelled.
        ModuleNotFoundError: submitit is not installed.
        ValueError: an option that submitit does not know.
        RuntimeError: there is no SLURM here.
    """
    # In the launcher alone: a job can be asked to stop once this module is there.
    from lora_jax.sweeps.executors.work import last_words

    with needs("slurm"):
        import submitit

    chosen: dict[str, Any] = {
        name: int(value) if value.isdigit() else value for name, value in options.items()
    }
    executor = submitit.AutoExecutor(
        folder=Path(launch.config.out) / "slurm", cluster=chosen.pop("cluster", None)
    )
    try:
        executor.update_parameters(name="lora-jax", **chosen)
    except (NameError, TypeError, ValueError) as unknown:
        raise ValueError(f"submitit does not take these options: {unknown}") from unknown

    with stop_signals() as stopped:
        jobs = executor.map_array(Work(launch.order()), range(launch.workers))
        say(f"submitted jobs {', '.join(job.job_id for job in jobs)}; logs in {executor.folder}")
        _wait(jobs, stopped.is_set)
        if stopped.is_set():
            for job in jobs:
                job.cancel(check=False)
            say("cancelled the jobs")
            limit = time.monotonic() + _PATIENCE
            _wait(jobs, lambda: time.monotonic() > limit)
            raise KeyboardInterrupt

    died = 0
    for number, job in enumerate(jobs):
        try:
            say(f"worker {number} (job {job.job_id}): {job.results()[0]} runs finished")
        except Exception as error:  # submitit raises what the job raised, or its own errors
            died += 1
            say(f"worker {number} (job {job.job_id}) ended with: {last_words(error)}")
    return died


def _wait(jobs: Sequence[Any], enough: Callable[[], bool]) -> None:
    """Until the jobs have ended, or it is enough."""
    while not enough() and not all(job.done() for job in jobs):
        time.sleep(0.2)
