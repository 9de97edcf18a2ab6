"""Runs a sweep in this process: finished runs are kept, failed ones recorded, compiled programs
shared.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lora_jax.config import ADAPTERS, Config
from lora_jax.sweeps.grid import expand, run_id, shown_format, shown_targets
from lora_jax.sweeps.halving import Halving
from lora_jax.sweeps.leases import Leases
from lora_jax.sweeps.memory import predicted
from lora_jax.sweeps.provenance import environment
from lora_jax.sweeps.side_by_side import Pack, packs
from lora_jax.sweeps.store import RunStore
from lora_jax.tasks.opening import LastTask
from lora_jax.training.result import RunResult
from lora_jax.training.sharing import can_stack


@dataclass(frozen=True)
class Outcome:
    """What became of the runs of a sweep, by id. `elsewhere` are being run by another process,
    `stopped` were halved away.
    """

    done: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[str, ...]
    elsewhere: tuple[str, ...]
    stopped: tuple[str, ...] = ()


def run_sweep(
    config: Config,
    *,
    runs: Sequence[Config] | None = None,
    since: float | None = None,
    command: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    quiet: bool = False,
    tasks: LastTask | None = None,
) -> Outcome:
    """Trains every run of the configuration's sweep that the store at `config.out` does not hold as
    done.

    With `sweep.stack`, runs that can share a base are trained side by side in one program. A run
    that fails is recorded with its error and the rest goes on. SIGTERM and SIGINT stop the sweep
    between two steps, with a checkpoint; the same call goes on from there.

    Args:
        config: the sweep, which is also the plan that the store notes. runs: only these of its
            runs, as nearly in this order as packs allow.
        since: runs that failed after this time (seconds since 1970) are not tried again; see
            `Leases`.

        tasks: holds the task of the last run, if its caller has opened it already.

    Raises:
        Interrupted: a signal came.
        StoreError: the store cannot be written.
    """
    planned = expand(config)
    store = RunStore(config.out)
    store.write_plan([run_id(run) for run in planned])
    surroundings = environment() | ({"command": " ".join(command)} if command else {})
    leases = Leases(
        store, surroundings, say or (lambda text: print(text, file=sys.stderr, flush=True)), since
    )
    place = {run_id(run): number for number, run in enumerate(planned if runs is None else runs, 1)}
    tasks = tasks or LastTask()
    sweep = _Sweep(config, leases, quiet, place, tasks)
    found = packs(planned, config.sweep, predict=functools.partial(predicted, tasks))
    # Packed as the whole sweep, whichever runs are chosen: a run that another launcher goes on with
    # must find its checkpoint's shapes.
    for pack, chosen in _chosen(found, None if runs is None else place):
        left = [run for run in chosen if not sweep.ended(run)]
        if (pack.slots > 1 and len(left) > 1) or (
            sweep.halving.on and left and can_stack(pack.runs[0])
        ):
            sweep.side_by_side(pack, left)
        else:
            for run in left:
                sweep.alone(pack, run)
    return Outcome(
        tuple(leases.done),
        tuple(leases.kept),
        tuple(leases.failed),
        tuple(leases.elsewhere),
        tuple(sweep.stopped),
    )


def _chosen(
    found: Sequence[Pack], place: Mapping[str, int] | None
) -> list[tuple[Pack, list[Config]]]:
    """The packs with those of their runs that have a place, by it; all runs if `place` is None."""
    if place is None:
        return [(pack, list(pack.runs)) for pack in found]
    at = lambda run: place[run_id(run)]
    chosen = [
        (pack, sorted((run for run in pack.runs if run_id(run) in place), key=at)) for pack in found
    ]
    return sorted(
        ((pack, runs) for pack, runs in chosen if runs), key=lambda entry: at(entry[1][0])
    )


class _Sweep:
    """The claims of this launcher, and how its runs are trained."""

    def __init__(
        self,
        config: Config,
        leases: Leases,
        quiet: bool,
        numbers: Mapping[str, int],
        tasks: LastTask,
    ) -> None:
        self.config, self.leases, self.quiet, self.numbers = config, leases, quiet, numbers
        self.tasks = tasks
        self.halving = Halving(leases.store.root, config.sweep.halving)
        self.stopped: list[str] = []

    def title(self, run: Config) -> str:
        """The run's number and description."""
        return f"[{self.numbers[run_id(run)]}/{len(self.numbers)}] {describe_run(run)}"

    def ended(self, run: Config) -> bool:
        """Whether the run is done already, or was stopped at a rung; which is said and counted."""
        name = run_id(run)
        if self.leases.store.status(name) == "done":
            self.leases.claim(name, run, self.title(run))
            return True
        if self.halving.on and name in self.halving.stopped:
            self.stopped.append(name)
            self.leases.say(
                f"{self.title(run)}: stopped before at step {self.halving.stopped[name]}"
            )
            return True
        return False

    def finish(self, run: Config, result: RunResult) -> None:
        """Records a run that is done."""
        name = run_id(run)
        score = result.score("test")
        summary = (
            f"{self.title(run)}: test {score.label} {score.value:.4f} in {result.seconds:.0f} s"
        )
        self.leases.finish(name, result, summary)

    def stop(self, run: Config, error: Exception) -> None:
        """Records a run that was stopped at a rung: it is left as an interrupted one, with its
        checkpoint.
        """
        self.leases.release(run_id(run))
        self.stopped.append(run_id(run))
        self.leases.say(f"{self.title(run)}: {error}")

    def alone(self, pack: Pack, run: Config) -> None:
        """Trains one run, in the shapes of its group."""
        from lora_jax.core.heap import release_freed_memory
        from lora_jax.training.interrupted import Interrupted
        from lora_jax.training.loop import train

        name, title = run_id(run), self.title(run)
        folder = self.leases.claim(name, run, title)
        if folder is None:
            return
        try:
            self.finish(
                run,
                train(
                    run,
                    folder,
                    task=self.tasks.of(run),
                    wide=pack.wide,
                    quiet=self.quiet,
                    title=title,
                ),
            )
        except Interrupted:
            self.leases.release(name)
            raise
        except (Exception, KeyboardInterrupt) as error:
            self.leases.fail(name, error, title)
            if isinstance(error, KeyboardInterrupt):
                raise
            return
        release_freed_memory()

    def side_by_side(self, pack: Pack, left: Sequence[Config]) -> None:
        """Trains runs in one program, each recorded when it is finished."""
        from lora_jax.core.heap import release_freed_memory
        from lora_jax.training.interrupted import Interrupted
        from lora_jax.training.stacked import Job, Stopped, train_stacked

        started: dict[str, Config] = {}

        def jobs() -> Iterator[Job]:
            for run in left:
                folder = self.leases.claim(run_id(run), run, self.title(run))
                if folder is not None:
                    started[run_id(run)] = run
                    yield Job(run, folder, self.config.sweep.halving.rungs)

        def judge(job: Job, step: int, score: dict[str, float]) -> bool:
            return self.halving.keep(run_id(job.config), step, score["loss"])

        def finished(job: Job, outcome: RunResult | Exception) -> None:
            run = started.pop(run_id(job.config))
            if isinstance(outcome, Stopped):
                self.stop(run, outcome)
            elif isinstance(outcome, Exception):
                self.leases.fail(run_id(run), outcome, self.title(run))
            else:
                self.finish(run, outcome)

        slots = max(1, min(pack.slots, len(left)))
        try:
            wide = pack.wide or pack.runs[0]
            train_stacked(
                jobs(),
                finished,
                wide=wide,
                slots=slots,
                task=self.tasks.of(wide),
                judge=judge,
                quiet=self.quiet,
                title=f"{len(left)} runs, {slots} at a time",
            )
        except Interrupted:
            for name in started:
                self.leases.release(name)
            raise
        except (Exception, KeyboardInterrupt) as error:
            for name, run in started.items():
                self.leases.fail(name, error, self.title(run))
            if isinstance(error, (KeyboardInterrupt, OSError)):
                raise
        release_freed_memory()


def describe_run(run: Config) -> str:
    """A run in a few words: 'nf4, rank 4, all-linear, seed 0'."""
    words = [run.method]
    if run.method in ADAPTERS:
        words = [
            shown_format(run.quant.format),
            f"rank {run.lora.rank}",
            shown_targets(run.lora.targets),
        ]
    return ", ".join([*words, f"seed {run.train.seed}"])
