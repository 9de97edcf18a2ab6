"""The ledger: claims by their files, and their results as JSON."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.claim import Claim, Finding
from lab.measured import Lab, machine_seconds
from lora_jax.sweeps.provenance import cpu_count, environment
from lora_jax.sweeps.store import write_json

FORMAT = "lora_jax-claim-2"
KINDS = ("theorem", "accounting", "weights", "trained")


class ResultError(ValueError):
    """A result file that is not a result of the claim as it is tested now."""


@dataclass(frozen=True)
class Entry:
    """A claim with its test (None: out of scope here) and its file."""

    claim: Claim
    run: Callable[[Any], Finding] | None
    path: Path


def load_claims(folder: Path) -> dict[str, Entry]:
    """Every claim of the folder by id: C1, C2, ..., then N1, N2, ... A claim is a file c*.py or
    n*.py with a `CLAIM` and, unless it is out of scope, a `run(lab)`.

    Raises:
        ValueError: a file is no claim, or two have one id.
    """
    entries: dict[str, Entry] = {}
    for path in sorted(folder.glob("[cn][0-9]*.py")):
        spec = importlib.util.spec_from_file_location(f"lora_jax_claim_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        claim, run = getattr(module, "CLAIM", None), getattr(module, "run", None)
        if not isinstance(claim, Claim) or callable(run) == bool(claim.out_of_scope):
            raise ValueError(
                f"{path} needs a CLAIM (lab.claim.Claim) and either a function run(lab) or, in the "
                "CLAIM, why it is out of scope. See a file beside it."
            )
        if claim.id in entries:
            raise ValueError(
                f"{path} and {entries[claim.id].path} both claim to be {claim.id}. Give one of "
                "them another id."
            )
        entries[claim.id] = Entry(claim, run, path)
    return dict(sorted(entries.items(), key=lambda item: (item[0][0], int(item[0][1:]))))


def choose(names: Sequence[str], entries: Mapping[str, Entry]) -> list[Entry]:
    """The claims of these ids ('C3', 'c3', '3', 'n16'), or all that can be run of a kind (one of
    `KINDS`, or 'all').

    Raises:
        ValueError: there is none of that name; near names are listed.
    """
    chosen: dict[str, Entry] = {}
    for name in names:
        if name in ("all", *KINDS):
            chosen |= {
                key: entry
                for key, entry in entries.items()
                if entry.run is not None and name in ("all", entry.claim.kind)
            }
            continue
        key = name.upper() if name[:1].upper() in ("C", "N") else f"C{name}"
        if key not in entries:
            near = difflib.get_close_matches(key, entries, 3, 0.5) or list(entries)[:5]
            words = [f"{found} ({entries[found].claim.title})" for found in near]
            raise ValueError(
                f"There is no claim {name!r}. Nearest: {'; '.join(words)}. List them with: "
                "lora-jax claims list."
            )
        if entries[key].run is None:
            raise ValueError(f"Claim {key} is out of scope here: {entries[key].claim.out_of_scope}")
        chosen[key] = entries[key]
    return list(chosen.values())


def run_claim(entry: Entry, lab: Lab, *, results: Path, command: str) -> dict[str, Any]:
    """Tests the claim, writes its result file and returns what is in it."""
    start = time.perf_counter()
    lab.new_account()
    finding = entry.run(lab)
    own = machine_seconds(time.perf_counter() - start, cpu_count()) - lab.seconds_here()
    result = {
        "format": FORMAT,
        "claim": dataclasses.asdict(entry.claim),
        "verdict": finding.verdict,
        **dataclasses.asdict(finding),
        # Runs are shared between claims and kept over a stop: all that the claim rests on is
        # counted, whenever it was trained, and by name, so that a sum can count it once.
        "seconds": round(own + sum(lab.account().values()), 1),
        "own_seconds": round(own, 1),
        "runs": {name: round(took, 1) for name, took in sorted(lab.account().items())},
        "environment": environment() | {"command": command},
        "finished": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / f"{entry.claim.id}.json", result)
    return json.loads((results / f"{entry.claim.id}.json").read_text())


def read_result(path: Path, claim: Claim) -> dict[str, Any] | None:
    """The result of a claim; None if it has not been run.

    Raises:
        ResultError: the file is damaged, of another format, or of another version of the claim.
    """
    if not path.is_file():
        return None
    again = f"Run it again: lora-jax claims run {claim.id} --again."
    try:
        result = json.loads(path.read_text())
        format, version = result["format"], result["claim"]["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"{path} needs to be a result of claim {claim.id}, but cannot be read ({error}). "
            f"{again}"
        ) from None
    if format != FORMAT:
        raise ResultError(
            f"{path} is of format {format!r}, and this version of lora_jax reads {FORMAT!r}. "
            f"{again}"
        )
    if result["claim"]["id"] != claim.id or version != claim.version:
        raise ResultError(
            f"{path} is a result of {result['claim']['id']} version {version}, and the claim's "
            f"test is {claim.id} version {claim.version}: "
            f"what was tested has changed since. {again}"
        )
    return result
