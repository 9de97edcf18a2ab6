"""Train one run and keep its adapter, metrics and result.

  lora-jax train --config rotten_tomatoes:lora --config.lora.rank=4

The run's folder is RUNS/<run id> under --config.out. Stop it with ctrl-C or SIGTERM, or kill it:
the same command goes on from the newest checkpoint. A config with a sweep is trained at its first
seed, without the grid.

  lora-jax train --config FILE --executor slurm --executor-option timeout_min=600
      in a SLURM job (or with --executor ray on a cluster) that this command waits for; with
      --executor-option nodes=2 on the devices of two machines
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_jax.commands.shared import (
    add_executor,
    add_run,
    check_executor_options,
    on_hosts,
    on_workers,
    read_config,
    show_settings,
)

if TYPE_CHECKING:
    from lora_jax.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax train`."""
    add_run(parser)
    add_executor(parser, "where it is trained in place of here: slurm, ray or processes")


def run(arguments: argparse.Namespace) -> int:
    """Trains; prints the result as JSON."""
    config = read_config(arguments)
    check_executor_options(arguments)
    if arguments.executor is None:
        return on_hosts(arguments, config, lambda: _train(config, arguments))
    from lora_jax.core.hosts import seat_of

    if seat_of(arguments.hosts) or config.memory_budget is not None:
        raise ValueError(
            "--executor trains elsewhere: --hosts (or JAX_COORDINATOR_ADDRESS) and "
            "config.memory_budget are of processes that train where they are started. Leave them "
            "out. (Several nodes: --executor-option nodes=2.)"
        )
    return _train(config, arguments)


def _train(config: Config, arguments: argparse.Namespace) -> int:
    from lora_jax.config import SweepConfig
    from lora_jax.sweeps.grid import expand, run_id
    from lora_jax.sweeps.runner import run_sweep
    from lora_jax.sweeps.store import RunStore, read_run
    from lora_jax.tasks.opening import LastTask

    single = replace(config, sweep=SweepConfig(learning_rate=config.sweep.learning_rate))
    tasks = LastTask()
    if single.memory_budget is not None:
        from lora_jax.training.allocator import set_budget
        from lora_jax.training.memory import fit_budget, parse_bytes

        set_budget(parse_bytes(single.memory_budget))
        single, said = fit_budget(single, tasks.of(single))
        print("\n".join(f"memory: {text}" for text in said), file=sys.stderr)
    if not arguments.quiet:
        show_settings(single, verbose=arguments.verbose)
    if arguments.executor is None:
        outcome = run_sweep(single, quiet=arguments.quiet, tasks=tasks)
    else:
        outcome = on_workers(single, arguments)
    record = read_run(RunStore(single.out).folder(run_id(expand(single)[0])))
    # A run of this id that is there and was refused, as of other data, is not the one asked for.
    if record.result is not None and record.run_id not in outcome.failed:
        print(json.dumps(record.result.row(), indent=2))
        print(f"run folder: {record.folder}")
    return 1 if outcome.failed else 0
