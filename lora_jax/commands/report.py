"""Write the report of finished runs: one HTML page, Markdown, CSV and PNG.

  lora-jax report runs/default
  lora-jax report runs/default runs/more_seeds --out /tmp/report

Runs of several folders are gathered into one report; a cell is every seed of one setting.
"""

from __future__ import annotations

import argparse

from lora_jax.commands.shared import print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax report`."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="the folder of a sweep (config.out), or of a single run",
    )
    parser.add_argument("--out", help="the report's folder; by default RUNS/report")
    parser.add_argument(
        "--margin",
        type=float,
        help="smallest difference of the score that matters, in its own unit, such as 0.01 (1 point "
        "of accuracy); by default as the runs were configured (config.report.margin)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the report and prints its table."""
    from lora_jax.sweeps.report import write_and_summarise

    page, table = write_and_summarise(arguments.runs, arguments.out, margin=arguments.margin)
    print_table(table)
    print(f"report: {page}\nthe same in one page: {page.with_suffix('.html')}")
    return 0
