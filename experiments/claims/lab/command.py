"""What `lora-jax claims` does in the checkout: list the claims, test them, verify what is kept, write
the page.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from lab import ledger
from lab.measured import Lab
from lab.page import write_page
from lab.verify import compare_results
from lora_jax.commands.shared import print_table
from lora_jax.core.escapes import in_terminal
from lora_jax.training.interrupted import Interrupted


def run(arguments: argparse.Namespace, folder: Path) -> int:
    """The exit status of the command on the claims in a folder."""
    entries, results = ledger.load_claims(folder), folder / "results"
    if arguments.action == "list":
        _list(entries, results)
        return 0
    if arguments.action == "run":
        return _run(arguments, entries, results)
    if arguments.action == "verify":
        return _verify(arguments, entries, results)
    print(write_page(entries, results, folder.parent / "README.md"))
    return 0


def _verify(
    arguments: argparse.Namespace, entries: Mapping[str, ledger.Entry], results: Path
) -> int:
    """Trains claims anew in a folder of their own, and compares with the results that are kept."""
    root = Path(f"{arguments.runs}-verified")
    lab, again, differ = Lab(root, seeds=_seeds(arguments)), root / "results", 0
    for entry in _asked(arguments, entries):
        key = entry.claim.id
        kept = ledger.read_result(results / f"{key}.json", entry.claim)
        if kept is None:
            raise ValueError(f"Claim {key} has no result yet. First: lora-jax claims run {key}.")
        found = ledger.run_claim(entry, lab, results=again, command=_command())
        told = compare_results(kept, found)
        print(f"{key} {told}", flush=True)
        differ += not told.agrees
    return 1 if differ else 0


def _asked(
    arguments: argparse.Namespace, entries: Mapping[str, ledger.Entry]
) -> list[ledger.Entry]:
    if not arguments.claims:
        raise ValueError(
            f"Which claims? Give ids such as C3, or one of {', '.join((*ledger.KINDS, 'all'))}. "
            "See: lora-jax claims list."
        )
    return ledger.choose(arguments.claims, entries)


def _seeds(arguments: argparse.Namespace) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in arguments.seeds.split(","))
    except ValueError:
        raise ValueError(
            f"--seeds needs whole numbers such as 0,1,2, got {arguments.seeds!r}."
        ) from None


def _command() -> str:
    return shlex.join(["lora-jax", *sys.argv[1:]])


def _run(arguments: argparse.Namespace, entries: Mapping[str, ledger.Entry], results: Path) -> int:
    asked, lab, failed = (
        _asked(arguments, entries),
        Lab(arguments.runs, seeds=_seeds(arguments)),
        [],
    )
    command = _command()
    for entry in asked:
        claim = entry.claim
        if not arguments.again and (
            kept := ledger.read_result(results / f"{claim.id}.json", claim)
        ):
            print(f"{claim.id} {kept['verdict']}, kept: {_ours(kept)}")
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
        said = f"{claim.id} {result['verdict']}: {_ours(result)} ({result['seconds']} s)"
        print(said, flush=True)
    if failed:
        print(
            f"{len(failed)} of the claims could not be tested: {', '.join(failed)}", file=sys.stderr
        )
    return 1 if failed else 0


def _list(entries: Mapping[str, ledger.Entry], results: Path) -> None:
    table = Table("claim", "what", "source", "kind", "verdict")
    for key, entry in entries.items():
        try:
            result = ledger.read_result(results / f"{key}.json", entry.claim)
            verdict = "not run" if result is None else result["verdict"]
            verdict = "out of scope" if entry.run is None else verdict
        except ledger.ResultError:
            verdict = "result of another version"
        row = (key, entry.claim.title, entry.claim.source, entry.claim.kind, verdict)
        table.add_row(*map(in_terminal, row))
    print_table(table)


def _ours(result: Mapping[str, Any]) -> str:
    return "; ".join(part["ours"] for part in result["parts"])
