"""Test published claims again, and write the page of what came out.

  lora-jax claims list
  lora-jax claims run C3 N16
      or a kind: theorem, accounting, weights, trained, all
  lora-jax claims verify C3
      trains it anew, and compares with the result that is kept
  lora-jax claims report

Finished claims are kept (--again tests one anew), and so are the training runs behind them: after a
stop the same command goes on. A training run that diverges is part of the result. `report` writes
experiments/README.md from the result files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax claims`."""
    parser.add_argument("action", choices=["list", "run", "verify", "report"])
    parser.add_argument(
        "claims",
        nargs="*",
        metavar="ID",
        help="which to run, such as C3; or theorem, accounting, weights, trained, all",
    )
    parser.add_argument(
        "--again", action="store_true", help="run claims whose result is there already"
    )
    parser.add_argument(
        "--runs", default="runs/claims", help="folder of the training runs (runs/claims)"
    )
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of every arm, 3 or more (0,1,2,3,4)")
    parser.add_argument("--folder", help="folder of the claims (experiments/claims)")


def run(arguments: argparse.Namespace) -> int:
    """Lists, runs or reports."""
    folder = _open_lab(arguments.folder)
    from lab import command

    return command.run(arguments, folder)


def _open_lab(given: str | None) -> Path:
    """The folder of claims, given or found; what they share, the package `lab`, can be imported
    afterwards.

    Raises:
        FileNotFoundError: there is no such folder, or no lab.
    """
    checkouts = [root / "experiments" / "claims" for root in (Path.cwd(), CHECKOUT)]
    labs = [folder for folder in checkouts if (folder / "lab" / "ledger.py").is_file()]
    folder = Path(given) if given else next(iter(labs), None)
    if not labs or folder is None or not folder.is_dir():
        missing = f"no folder {given}" if labs else "no experiments/claims/lab here"
        raise FileNotFoundError(
            "Claims are files of the project's checkout, not of the installed package, and there "
            f"is {missing}. Run this from the root of a checkout; --folder names another folder of "
            "claims."
        )
    sys.path.insert(0, str(labs[0]))
    return folder
