"""Runs a sweep in this process: finished runs are kept, failed ones recorded, compiled programs
shared.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from lora_jax.config import ADAPTERS, NO_FORMAT, Config
from lora_jax.core.heap import release_freed_memory
from lora_jax.sweeps.grid import expand, run_id, shown_format, shown_targets
from lora_jax.sweeps.halving import Halving, ground
from lora_jax.sweeps.leases import Leases
from lora_jax.sweeps.provenance import environment
from lora_jax.sweeps.settings import in_words, variants
from lora_jax.sweeps.side_by_side import Pack, packs, predicted
from lora_jax.sweeps.store import RunStore
from lora_jax.tasks.opening import LastTask
from lora_jax.tasks.task import Task
from lora_jax.training.interrupted import Interrupted, Stopped, stop_signals
from lora_jax.training.loop import fit
from lora_jax.training.metrics import MetricsLog
from lora_jax.training.result import RunResult
from lora_jax.training.run import Run
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


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome of several: a run that one batch trained and another found done was trained."""
    names = [field.name for field in fields(Outcome)]
    found = {
        name: tuple(dict.fromkeys(run for outcome in outcomes for run in getattr(outcome, name)))
        for name in names
    }
    return Outcome(
        **{**found, "kept": tuple(run for run in found["kept"] if run not in found["done"])}
    )


def run_sweep(
    config: Config,
    *,
    runs: Sequence[Config] | None = None,
    since: float | None = None,
    score_test: bool = True,
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
        config: the sweep, which is also the plan that the store notes.
        runs: only these of its runs, as nearly in this order as packs allow.
        since: runs that failed after this time (seconds since 1970) are not tried again; see
            `Leases`.
        score_test: whether runs are scored on the test split. Those that are only tuned by are not;
            where they are asked for as results later, that alone is made up for.
        tasks: holds the task of the last run, if its caller has opened it already.

    Raises:
        Interrupted: a signal came.
        StoreError: the store cannot be written.
    """
    tasks = tasks or LastTask()
    # What a sink needs and is not installed ends the sweep, not each of its runs.
    MetricsLog(Path(config.out), config.train.sinks)
    with stop_signals() as stopped:
        planned = expand(config)
        store = RunStore(config.out)
        store.write_plan([run_id(run) for run in planned])
        surroundings = environment() | ({"command": " ".join(command)} if command else {})
        say = say or functools.partial(print, file=sys.stderr, flush=True)
        leases = Leases(store, surroundings, say, since, score_test)
        ours = planned if runs is None else runs
        place = {run_id(run): number for number, run in enumerate(ours, 1)}
        sweep = _Sweep(config, leases, quiet, place, describe_runs(planned), tasks)

        # Packed as the whole sweep, whichever runs are chosen: a run that another launcher goes on
        # with must find its checkpoint's shapes.
        found = packs(planned, config.sweep, predict=functools.partial(predicted, tasks))
        for pack, chosen in _chosen(found, None if runs is None else place):
            for group, rungs in sweep.groups(pack, chosen):
                sweep.train(pack, group, rungs)
                if stopped.is_set():
                    raise Interrupted(None)
    lists = (leases.done, leases.kept, leases.failed, leases.elsewhere, sweep.stopped)
    return Outcome(*map(tuple, lists))


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
        words: Mapping[str, str],
        tasks: LastTask,
    ) -> None:
        self.config, self.leases, self.quiet, self.numbers = config, leases, quiet, numbers
        self.tasks, self.words = tasks, words
        under = ground(config) if config.sweep.halving.rungs else None
        self.halving = Halving(leases.store.root, config.sweep.halving, under)
        self.stopped: list[str] = []

    def title(self, run: Config) -> str:
        """The run's number and description."""
        return f"[{self.numbers[run_id(run)]}/{len(self.numbers)}] {self.words[run_id(run)]}"

    def ended(self, run: Config) -> bool:
        """Whether the run is done already, or was stopped at a rung; which is said and counted."""
        name = run_id(run)
        if self.leases.store.is_done(name, score_test=self.leases.score_test):
            self.leases.claim(name, run, self.title(run))
            return True
        if self.halving.on and name in self.halving.stopped:
            self.stopped.append(name)
            self.leases.say(
                f"{self.title(run)}: stopped before at step {self.halving.stopped[name]}"
            )
            return True
        return False

    def groups(
        self, pack: Pack, chosen: Sequence[Config]
    ) -> list[tuple[list[Config], tuple[int, ...]]]:
        """Those of the runs that have not ended, as they are trained together, with their rungs."""
        left = [run for run in chosen if not self.ended(run)]
        stackable = can_stack(pack.runs[0])
        if (pack.slots > 1 and len(left) > 1) or (self.halving.on and left and stackable):
            return [(left, self.config.sweep.halving.rungs)]
        return [([run], ()) for run in left]

    def train(self, pack: Pack, group: Sequence[Config], rungs: tuple[int, ...]) -> None:
        """Trains runs side by side, or a single one, in the shapes of their pack; each is recorded
        when it is finished.
        """
        started: dict[str, Config] = {}

        def runs() -> Iterator[Run]:
            for config in group:
                folder = self.leases.claim(run_id(config), config, self.title(config))
                if folder is not None:
                    started[run_id(config)] = config
                    yield Run(config, folder, rungs)

        def task_of(config: Config) -> Task:
            task = self.tasks.of(config)
            self.halving.check_contents(self.tasks.made_of)
            return task

        def judge(run: Run, step: int, score: dict[str, float]) -> bool:
            return self.halving.keep(run_id(run.config), step, score["loss"])

        def finished(run: Run, outcome: RunResult | Exception) -> None:
            name, title = run_id(run.config), self.title(run.config)
            del started[name]
            if isinstance(outcome, Stopped):
                # Left as an interrupted one, with its checkpoint.
                self.leases.release(name)
                self.stopped.append(name)
                self.leases.say(f"{title}: {outcome}")
            elif isinstance(outcome, Exception):
                self.leases.fail(name, outcome, title)
            else:
                said = f"{title}: {_in_words(outcome)}"
                self.leases.finish(name, outcome, said, self.tasks.made_of)

        slots = max(1, min(pack.slots, len(group)))
        many = len(group) > 1
        try:
            fit(
                runs(),
                finished,
                task_of=task_of,
                wide=pack.wide,
                slots=slots,
                judge=judge,
                saved=lambda run: self.leases.store.progressed(run_id(run.config)),
                score_test=self.leases.score_test,
                quiet=self.quiet,
                title=f"{len(group)} runs, {slots} at a time" if many else self.title(group[0]),
            )
        except (Interrupted, KeyboardInterrupt):
            for name in started:
                self.leases.release(name)
            raise
        except Exception as error:
            for name, config in started.items():
                self.leases.fail(name, error, self.title(config))
            if isinstance(error, OSError):
                raise
        release_freed_memory()


def _in_words(result: RunResult) -> str:
    split, metric = ("test", None) if result.is_tested else ("validation", "loss")
    score = result.score(split, metric)
    return f"{split} {score.label} {score.value:.4f} in {result.seconds:.0f} s"


def describe_runs(runs: Sequence[Config]) -> dict[str, str]:
    """Each run in a few words, by id: 'nf4, rank 4, all-linear, learning_rate=0.01, seed 0', with
    the settings in which they differ.
    """
    settings = [in_words(run) for run in runs]
    for setting in settings:
        del setting["train.seed"]
    kinds = ["" if run.method in ADAPTERS else run.method for run in runs]
    others = variants(kinds, settings, [run.quant.format != NO_FORMAT for run in runs])

    found = {}
    for run, other in zip(runs, others, strict=True):
        words = [run.method]
        if run.method in ADAPTERS:
            words = [
                shown_format(run.quant.format, run.model.base_dtype),
                f"rank {run.lora.rank}",
                shown_targets(run.lora.targets),
            ]
        words += [other] if other else []
        found[run_id(run)] = ", ".join([*words, f"seed {run.train.seed}"])
    return found
