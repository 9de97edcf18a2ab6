"""Runs a sweep in this process: finished runs are kept, failed ones recorded, compiled programs shared."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_jax.config import ADAPTERS, Config
from lora_jax.sweep.grid import expand, run_id, shown_format, shown_targets
from lora_jax.sweep.halving import Halving
from lora_jax.sweep.packing import Pack, packs
from lora_jax.sweep.provenance import environment
from lora_jax.sweep.store import RunLocked, RunStore
from lora_jax.train.sharing import can_stack, program_key, widest


@dataclass(frozen=True)
class Outcome:
    """What became of the runs of a sweep, by id. `elsewhere` are being run by another process, `stopped` were halved away."""

    done: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[str, ...]
    elsewhere: tuple[str, ...]
    stopped: tuple[str, ...] = ()


def groups(runs: Sequence[Config]) -> list[tuple[Config | None, list[Config]]]:
    """Runs that share compiled programs, each group with its widest run (None for runs without adapters).

    Adapters of one format differ in rank and targets only through `scale`: each is padded to the group's largest rank and to
    the union of its targets. What else differs (format, model, data, batch, optimiser) makes another group.
    """
    found: dict[Config, list[Config]] = {}
    for run in runs:
        found.setdefault(program_key(run), []).append(run)
    return [(widest(members), members) for members in found.values()]


def run_sweep(config: Config, *, command: Sequence[str] = (), say: Callable[[str], None] | None = None, quiet: bool = False) -> Outcome:
    """Trains every run of the configuration's sweep that the store at `config.out` does not hold as done.

    With `sweep.stack`, runs that can share a base are trained side by side in one program. A run that fails is recorded with its
    error and the rest goes on. SIGTERM and SIGINT stop the sweep between two steps, with a checkpoint; the same call goes on from
    there.

    Raises:
        Interrupted: a signal came.
        StoreError: the store cannot be written.
    """
    runs = expand(config)
    store = RunStore(config.out)
    store.write_plan([run_id(run) for run in runs])
    surroundings = environment() | ({"command": " ".join(command)} if command else {})
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    sweep = _Sweep(config, store, surroundings, say, quiet, {run_id(run): number for number, run in enumerate(runs, 1)})
    for pack in packs(runs, config.sweep):
        left = [run for run in pack.runs if not sweep.keep(run)]
        if not left:
            continue
        if (pack.slots > 1 and len(left) > 1) or (sweep.halving.on and can_stack(pack.runs[0])):
            sweep.side_by_side(pack, left)
        else:
            for run in left:
                sweep.alone(pack, run)
    return Outcome(**{name: tuple(ids) for name, ids in sweep.outcome.items()})


class _Sweep:
    """The store, and what became of the runs so far."""

    def __init__(
        self,
        config: Config,
        store: RunStore,
        surroundings: Mapping[str, Any],
        say: Callable[[str], None],
        quiet: bool,
        numbers: Mapping[str, int],
    ) -> None:
        self.config, self.store, self.surroundings, self.say, self.quiet, self.numbers = config, store, surroundings, say, quiet, numbers
        self.outcome: dict[str, list[str]] = {"done": [], "kept": [], "failed": [], "elsewhere": [], "stopped": []}
        self.halving = Halving(store.root, config.sweep.halving)

    def title(self, run: Config) -> str:
        """The run's number and description."""
        return f"[{self.numbers[run_id(run)]}/{len(self.numbers)}] {describe_run(run)}"

    def keep(self, run: Config) -> bool:
        """Whether the run is done already, or was stopped at a rung."""
        if self.store.status(run_id(run)) == "done":
            self.outcome["kept"].append(run_id(run))
            self.say(f"{self.title(run)}: done before, kept")
            return True
        if self.halving.on and run_id(run) in self.halving.stopped:
            self.outcome["stopped"].append(run_id(run))
            self.say(f"{self.title(run)}: stopped before at step {self.halving.stopped[run_id(run)]}")
            return True
        return False

    def start(self, run: Config) -> Path | None:
        """The run's folder, locked; None if another process runs it."""
        try:
            return self.store.start(run_id(run), run, self.surroundings)
        except RunLocked:
            self.outcome["elsewhere"].append(run_id(run))
            self.say(f"{self.title(run)}: another process is running it")
            return None

    def finish(self, run: Config, result: dict[str, Any]) -> None:
        """Records a run that is done."""
        self.store.finish(run_id(run), _labelled(run_id(run), run, result))
        self.outcome["done"].append(run_id(run))
        self.say(f"{self.title(run)}: test accuracy {result['test_accuracy']:.4f} in {result['seconds']:.0f} s")

    def fail(self, run: Config, error: BaseException) -> None:
        """Records a run that failed."""
        self.store.fail(run_id(run), error)
        self.outcome["failed"].append(run_id(run))
        self.say(f"{self.title(run)}: failed: {error}")

    def stop(self, run: Config, error: Exception) -> None:
        """Records a run that was stopped at a rung: it is left as an interrupted one, with its checkpoint."""
        self.store.release(run_id(run))
        self.outcome["stopped"].append(run_id(run))
        self.say(f"{self.title(run)}: {error}")

    def alone(self, pack: Pack, run: Config) -> None:
        """Trains one run, in the shapes of its group."""
        from lora_jax.train.allocator import release_freed_memory
        from lora_jax.train.interrupted import Interrupted
        from lora_jax.train.loop import train

        folder = self.start(run)
        if folder is None:
            return
        try:
            result = train(run, folder, wide=pack.wide, quiet=self.quiet, title=self.title(run))
        except Interrupted:
            self.store.release(run_id(run))
            raise
        except (Exception, KeyboardInterrupt) as error:
            self.fail(run, error)
            if isinstance(error, KeyboardInterrupt):
                raise
            return
        self.finish(run, result)
        release_freed_memory()

    def side_by_side(self, pack: Pack, left: Sequence[Config]) -> None:
        """Trains runs in one program, each recorded when it is finished."""
        from lora_jax.train.allocator import release_freed_memory
        from lora_jax.train.interrupted import Interrupted
        from lora_jax.train.stacked import Job, Stopped, train_stacked

        started: dict[str, Config] = {}

        def jobs() -> Iterator[Job]:
            for run in left:
                folder = self.start(run)
                if folder is not None:
                    started[run_id(run)] = run
                    yield Job(run, folder, self.config.sweep.halving.rungs)

        def judge(job: Job, step: int, score: dict[str, float]) -> bool:
            return self.halving.keep(run_id(job.config), step, score["loss"])

        def finished(job: Job, outcome: dict[str, Any] | Exception) -> None:
            run = started.pop(run_id(job.config))
            if isinstance(outcome, Stopped):
                self.stop(run, outcome)
            elif isinstance(outcome, Exception):
                self.fail(run, outcome)
            else:
                self.finish(run, outcome)

        slots = max(1, min(pack.slots, len(left)))
        try:
            wide = pack.wide or pack.runs[0]
            train_stacked(
                jobs(), finished, wide=wide, slots=slots, judge=judge, quiet=self.quiet, title=f"{len(left)} runs, {slots} at a time"
            )
        except Interrupted:
            for name in started:
                self.store.release(name)
            raise
        except (Exception, KeyboardInterrupt) as error:
            for run in started.values():
                self.fail(run, error)
            if isinstance(error, (KeyboardInterrupt, OSError)):
                raise
        release_freed_memory()


def describe_run(run: Config) -> str:
    """A run in a few words: 'nf4, rank 4, all-linear, seed 0'."""
    words = [run.method]
    if run.method in ADAPTERS:
        words = [shown_format(run.quant.format), f"rank {run.lora.rank}", shown_targets(run.lora.targets)]
    return ", ".join([*words, f"seed {run.train.seed}"])


def _labelled(name: str, run: Config, result: dict[str, Any]) -> dict[str, Any]:
    """The result with the cell that it belongs to."""
    adapter = run.method in ADAPTERS
    return {
        "run_id": name,
        "method": run.method,
        "format": run.quant.format if adapter else None,
        "rank": run.lora.rank if adapter else None,
        "targets": shown_targets(run.lora.targets) if adapter else None,
        "seed": run.train.seed,
        **result,
    }
