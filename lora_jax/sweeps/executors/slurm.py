"""Workers as SLURM jobs, through submitit: an array of as many jobs as there are workers.

Options: cluster (none = SLURM, local = processes here, to try it out), and whatever submitit's
`update_parameters` takes, such as timeout_min, slurm_partition, cpus_per_task, gpus_per_node,
mem_gb, slurm_account, slurm_array_parallelism. A job that runs out of time or is preempted is
queued again and goes on. Logs lie in STORE/slurm. The store's folder must be one that all nodes
see.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_jax.core.extras import needs
from lora_jax.sweeps.executors.work import Launch, last_words, work


class Work:
    """A job's callable: what submitit pickles, and calls again after a time limit or preemption."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch

    def __call__(self, number: int) -> int:
        """Works; the number of runs finished."""
        return work(self.launch, number, lambda text: print(text, flush=True))

    def checkpoint(self, number: int) -> Any:
        """The same job once more: its runs go on from their checkpoints."""
        with needs("slurm"):
            from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, number)


def start(launch: Launch, options: dict[str, str], say: Callable[[str], None]) -> int:
    """Submits the jobs and waits for all of them; how many ended with an error.

    Raises:
        ModuleNotFoundError: submitit is not installed.
        ValueError: an option that submitit does not know.
        RuntimeError: there is no SLURM here.
    """
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

    jobs = executor.map_array(Work(launch), range(launch.workers))
    say(f"submitted jobs {', '.join(job.job_id for job in jobs)}; logs in {executor.folder}")
    died = 0
    for number, job in enumerate(jobs):
        try:
            say(f"worker {number} (job {job.job_id}): {job.result()} runs finished")
        except Exception as error:  # submitit raises what the job raised, or its own errors
            died += 1
            say(f"worker {number} (job {job.job_id}) ended with: {last_words(error)}")
    return died
