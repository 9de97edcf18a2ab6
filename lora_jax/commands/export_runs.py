"""Write every run of a store into one flat table, for pandas, R or a spreadsheet.

  lora-jax export runs runs/default --out runs.csv
  lora-jax export runs runs/default --out steps.parquet --steps

A row a run: its id, status and error, then result.*, config.* and environment.*. With --steps a row
a logged step instead; join the two on run_id. Parquet needs the extra 'parquet'.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax export runs`."""
    parser.add_argument("store", metavar="STORE", help="the folder of a sweep (config.out)")
    parser.add_argument("--out", required=True, metavar="FILE", help="a .csv or .parquet file")
    parser.add_argument("--steps", action="store_true", help="a row a logged step, not a row a run")


def run(arguments: argparse.Namespace) -> int:
    """Writes the table and says how long it is."""
    from lora_jax.sweeps.export import export_runs

    rows = export_runs(arguments.store, arguments.out, steps=arguments.steps)
    print(f"{rows} rows: {arguments.out}")
    return 0
