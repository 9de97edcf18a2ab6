"""What `lora-jax claims` does in the checkout: list the claims, test them again, write the page."""

from __future__ import annotations

import argparse
import shlex
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from lab import ledger
from lab.protocol import Lab
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
    print(ledger.write_page(entries, results, folder.parent / "README.md"))
    return 0


def _run(arguments: argparse.Namespace, entries: Mapping[str, ledger.Entry], results: Path) -> int:
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


def _list(entries: Mapping[str, ledger.Entry], results: Path) -> None:
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
