"""Test published claims again, and write the page of what came out.

  lora-jax claims list
  lora-jax claims run C3 C9                 or a kind: exact, weights, trained, all
  lora-jax claims report

Finished claims are kept (--again tests one anew), and so are the training runs behind them: after a
stop the same command goes on. A training run that diverges is part of the result. `report` writes
experiments/README.md from the result files.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import traceback
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax claims`."""
    parser.add_argument("action", choices=["list", "run", "report"])
    parser.add_argument(
        "claims",
        nargs="*",
        metavar="ID",
        help="which to run, such as C3; or exact, weights, trained, all",
    )
    parser.add_argument(
        "--again", action="store_true", help="run claims whose result is there already"
    )
    parser.add_argument(
        "--runs", default="runs/claims", help="folder of the training runs (runs/claims)"
    )
    parser.add_argument("--seeds", default="0,1,2", help="of every arm, 3 or more (0,1,2)")
    parser.add_argument("--folder", help="folder of the claims (experiments/claims)")


def run(arguments: argparse.Namespace) -> int:
    """Lists, runs or reports."""
    folder = _open_lab(arguments.folder)
    from lab import ledger

    entries, results = ledger.load_claims(folder), folder / "results"
    if arguments.action == "list":
        _list(entries, results)
        return 0
    if arguments.action == "run":
        return _run(arguments, entries, results)
    print(ledger.write_page(entries, results, folder.parent / "README.md"))
    return 0


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


def _run(arguments: argparse.Namespace, entries: dict, results: Path) -> int:
    from lab import ledger
    from lab.protocol import Lab
    from lora_jax.training.interrupted import Interrupted

    if not arguments.claims:
        raise ValueError(
            "Which claims? Give ids such as C3, or one of exact, weights, trained, all. See: "
            "lora-jax claims list."
        )
    try:
        seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
    except ValueError:
        raise ValueError(
            f"--seeds needs whole numbers such as 0,1,2, got {arguments.seeds!r}."
        ) from None
    lab, failed = Lab(arguments.runs, seeds=seeds), []
    command = shlex.join(["lora-jax", *sys.argv[1:]])
    for entry in ledger.choose(arguments.claims, entries):
        claim = entry.claim
        if not arguments.again and (
            kept := ledger.read_result(results / f"{claim.id}.json", claim)
        ):
            print(f"{claim.id} {kept['verdict']}, kept: {kept['ours']}")
            continue
        print(f"{claim.id} {claim.title} ...", file=sys.stderr, flush=True)
        try:
            result = ledger.run_claim(entry, lab, results=results, command=command)
        except Interrupted:
            raise
        except Exception as error:
            # One claim that cannot be tested must not keep the others from it.
            failed.append(claim.id)
            print(
                f"{claim.id} could not be tested: {type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )
            if arguments.debug:
                traceback.print_exc()
            continue
        print(
            f"{claim.id} {result['verdict']}: {result['ours']} ({result['seconds']} s)", flush=True
        )
    if failed:
        print(
            f"{len(failed)} of the claims could not be tested: {', '.join(failed)}", file=sys.stderr
        )
    return 1 if failed else 0


def _list(entries: dict, results: Path) -> None:
    from rich.table import Table

    from lab import ledger
    from lora_jax.commands.shared import print_table
    from lora_jax.core.escapes import in_terminal

    table = Table("claim", "what", "source", "kind", "verdict")
    for key, entry in entries.items():
        try:
            result = ledger.read_result(results / f"{key}.json", entry.claim)
            verdict = "not run" if result is None else result["verdict"]
        except ledger.ResultError:
            verdict = "result of another version"
        row = (key, entry.claim.title, entry.claim.source, entry.claim.kind, verdict)
        table.add_row(*map(in_terminal, row))
    print_table(table)
