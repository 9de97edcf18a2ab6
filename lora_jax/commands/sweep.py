"""Train every run of a config's sweep, then write the report.

  lora-jax sweep --config default
  lora-jax sweep --config default --config.sweep.rank=1,2,4 \\
      --config.sweep.seeds=0,1,2 --config.out=runs/ranks

The grid is rank x format x targets x seeds, plus baselines x seeds, times sweep.axes, which may be
over any setting. With --config.sweep.stack=8, up to 8 adapters are trained side by side in one
program. Every run has an id made from its content: finished runs are never run again, a failed run
is recorded and the rest goes on, and the same command continues after a stop. Several launchers may
share one folder: a run is trained by one of them. With --workers N this command starts N itself, as
processes here, on Ray or on SLURM.

With --config.sweep.tune.factors=0.5,1,2, each cell's learning rate (or sweep.tune.setting) is first
chosen on validation data from a grid around its own, under seeds that are not scored:

  lora-jax sweep --config default --config.sweep.tune.factors=0.5,1,2

With --config.sweep.search.trials=N and lines of sweep.search.space, Optuna asks for the settings of
N trials in place of a grid:

  lora-jax sweep --config sweeps/search
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from lora_jax.commands.shared import (
    add_executor,
    add_run,
    check_executor_options,
    on_hosts,
    on_workers,
    print_table,
    read_config,
    show_settings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

    from lora_jax.config import Config
    from lora_jax.sweeps.runner import Outcome
    from lora_jax.sweeps.search import Trial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax sweep`."""
    add_run(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the runs, their ids and what they share, in seconds; train and compile nothing",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="with --dry-run: compile a step of each group for its memory and time",
    )

    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="train N runs at a time, each in a process of its own",
    )
    add_executor(parser, "where the workers are: processes (default), ray or slurm")
    parser.add_argument(
        "--no-report", action="store_true", help="do not write the report at the end"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs or plans the sweep."""
    if arguments.compile and not arguments.dry_run:
        raise ValueError("--compile says what a --dry-run compiles: give both, or neither.")
    config = read_config(arguments)
    check_executor_options(arguments)
    from lora_jax.core.hosts import seat_of

    alone = arguments.dry_run or arguments.workers or arguments.executor
    if alone and seat_of(arguments.hosts):
        raise ValueError(
            "--hosts (or JAX_COORDINATOR_ADDRESS) is one run after another on the devices of "
            "several processes: leave out --workers, --executor and --dry-run. (Workers of several "
            "nodes each: --executor-option nodes=2.)"
        )
    return on_hosts(arguments, config, lambda: _run(config, arguments))


def _run(config: Config, arguments: argparse.Namespace) -> int:
    if not arguments.quiet:
        show_settings(config, verbose=arguments.verbose)
    _caution(config, fetch=not arguments.dry_run, quiet=arguments.quiet)
    if arguments.dry_run:
        return _plan(config, compiled=arguments.compile)
    from lora_jax.sweeps.runner import run_sweep
    from lora_jax.tasks.opening import LastTask

    if arguments.workers is not None or arguments.executor is not None:
        train = partial(on_workers, arguments=arguments, workers=arguments.workers or 1)
    else:
        # Batches of a search and rounds of tuning read the model and its data once.
        train = partial(run_sweep, quiet=arguments.quiet, tasks=LastTask())
    if config.sweep.search.trials:
        outcome = _search(config, train, arguments)
    elif config.sweep.tune.factors:
        from lora_jax.sweeps.tuning import tune

        outcome, _ = tune(config, train, say=partial(print, file=sys.stderr, flush=True))
    else:
        outcome = train(config)
    return _ended(config, outcome, arguments)


def _caution(config: Config, *, fetch: bool, quiet: bool) -> None:
    """Says what is odd about the sweep before it begins.

    Raises:
        ValueError: targets match nothing of their model.
    """
    from lora_jax.config import Targets, kind_of, with_value
    from lora_jax.sweeps.grid import expand
    from lora_jax.sweeps.guards import cautions, target_cautions
    from lora_jax.sweeps.search import read_space
    from lora_jax.sweeps.tuning import stage

    seeds = config.sweep.seeds or (config.train.seed,)
    runs = expand(stage(config, {}, seeds))
    space = read_space(config) if config.sweep.search.trials else ()
    asked = [
        (dimension.key, one)
        for dimension in space
        if kind_of(dimension.key) == Targets
        for one in dimension.choices
    ]
    tried = [with_value(run, key, one) for run in runs[-1:] for key, one in asked] or runs
    for text in (*cautions(config, runs), *target_cautions(tried, fetch=fetch)):
        if not quiet:
            print(f"note: {text}", file=sys.stderr)


def _plan(config: Config, *, compiled: bool) -> int:
    """Prints the runs that will be trained first, and says what follows them."""
    from lora_jax.sweeps.plan import plan, plan_table
    from lora_jax.sweeps.tuning import first_round, size

    tune = config.sweep.tune
    first = first_round(config) if tune.factors else config
    # A round of tuning does not look at the test split.
    print_table(plan_table(plan(first, compiled=compiled, score_test=not tune.factors)))
    if not compiled:
        print("Memory and time: add --compile, which compiles a step of each group.")
        if config.sweep.memory_budget_gb is not None:
            print("sweep.memory_budget_gb may put fewer runs side by side than stand here.")
    if config.sweep.search.trials:
        from lora_jax.sweeps.search import read_space

        print(
            f"A search of {config.sweep.search.trials} trials like this, over:",
            *map(str, read_space(config)),
            sep="\n  ",
        )
    if tune.factors:
        least, most = size(config)
        print(
            f"This is the first of up to {tune.grow + 2} rounds: it tunes {tune.setting} by "
            f"validation loss, and the last one trains each cell at its best value. In all at "
            f"least {least} runs, and at most {most}, if the best of every cell stands at an edge "
            "of its grid."
        )
    return 0


def _ended(config: Config, outcome: Outcome, arguments: argparse.Namespace) -> int:
    """Says what became of the runs, and writes the report; the status of the command."""
    stopped = f", {len(outcome.stopped)} stopped at a rung" if outcome.stopped else ""
    print(
        f"{len(outcome.done)} runs trained, {len(outcome.kept)} kept from before, "
        f"{len(outcome.failed)} failed, {len(outcome.elsewhere)} run by another process{stopped}; "
        f"all in {config.out}",
        file=sys.stderr,
    )
    if (outcome.done or outcome.kept) and not arguments.no_report:
        from lora_jax.sweeps.report import write_and_summarise

        page, table = write_and_summarise(config.out, margin=config.report.margin)
        print_table(table)
        print(f"report: {page}")
    return 1 if outcome.failed else 0


def _search(
    config: Config, train: Callable[[Config], Outcome], arguments: argparse.Namespace
) -> Outcome:
    """Searches, prints the best trials, and says what became of all runs together."""
    from lora_jax.sweeps.search import search

    batch = max(config.sweep.stack, arguments.workers or 1)
    outcome, trials = search(
        config, train, batch=batch, say=partial(print, file=sys.stderr, flush=True)
    )
    print_table(trials_table(trials))
    return outcome


def trials_table(trials: Sequence[Trial]) -> Table:
    """A rich table of the first ten of these trials, the best first."""
    from rich.table import Table

    from lora_jax.core.escapes import in_terminal

    headings = ("trial", "validation loss", *trials[0].settings, "runs")
    table = Table(*headings, title=f"best of {len(trials)} trials")
    for trial in trials[:10]:
        values = [
            f"{value:.4g}" if isinstance(value, float) else str(value)
            for value in trial.settings.values()
        ]
        table.add_row(
            str(trial.number),
            "failed" if trial.loss is None else f"{trial.loss:.4f}",
            *map(in_terminal, values),
            ", ".join(trial.runs),
        )
    return table
