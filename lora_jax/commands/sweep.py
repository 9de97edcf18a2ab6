"""Train every run of a config's sweep, then write the report.

  lora-jax sweep --config configs/default.py
  lora-jax sweep --config configs/default.py --config.sweep.rank=1,2,4 --config.sweep.seeds=0,1,2 --config.out=runs/ranks

The grid is rank x format x targets x seeds, plus baselines x seeds, times sweep.axes, which may be over any setting. With
--config.sweep.stack=8, up to 8 adapters are trained side by side in one program. Every run has an id made from its content: finished runs
are never run again, a failed run is recorded and the rest goes on, and the same command continues after a stop.
"""

from __future__ import annotations

import argparse
import sys

from lora_jax.commands.settings import add_config, read_config, show_settings
from lora_jax.commands.tables import print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax sweep`."""
    add_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the runs, what they share and the memory they need; train nothing")
    parser.add_argument("--no-report", action="store_true", help="do not write the report at the end")


def run(arguments: argparse.Namespace) -> int:
    """Runs or plans the sweep."""
    config = read_config(arguments)
    if not arguments.quiet:
        show_settings(config)
    if arguments.dry_run:
        from lora_jax.sweep.plan import plan, plan_table

        print_table(plan_table(plan(config)))
        return 0
    from lora_jax.sweep.runner import run_sweep

    outcome = run_sweep(config, quiet=arguments.quiet)
    stopped = f", {len(outcome.stopped)} stopped at a rung" if outcome.stopped else ""
    print(
        f"{len(outcome.done)} runs trained, {len(outcome.kept)} kept from before, {len(outcome.failed)} failed, "
        f"{len(outcome.elsewhere)} run by another process{stopped}; all in {config.out}",
        file=sys.stderr,
    )
    if (outcome.done or outcome.kept) and not arguments.no_report:
        from lora_jax.sweep.report import report_table, write_report

        page = write_report(config.out)
        print_table(report_table(config.out))
        print(f"report: {page}")
    return 1 if outcome.failed else 0
