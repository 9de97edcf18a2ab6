"""The ledger: claims by their files, results as JSON, and the page that is made of them."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import counts
from lab.protocol import Claim, Finding, Lab
from lora_jax.sweeps.provenance import environment
from lora_jax.sweeps.store import write_json, write_text

FORMAT = "lora_jax-claim-1"


class ResultError(ValueError):
    """A result file that is not a result of the claim as it is tested now."""


@dataclass(frozen=True)
class Entry:
    """A claim with its test and its file."""

    claim: Claim
    run: Callable[[Lab], Finding]
    path: Path


def load_claims(folder: Path) -> dict[str, Entry]:
    """Every claim of the folder by id, in order of their numbers. A claim is a file c*.py with a
    `CLAIM` and a `run(lab)`.

    Raises:
        ValueError: a file is no claim, or two have one id.
    """
    entries: dict[str, Entry] = {}
    for path in sorted(folder.glob("c[0-9]*.py")):
        spec = importlib.util.spec_from_file_location(f"lora_jax_claim_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        claim, run = getattr(module, "CLAIM", None), getattr(module, "run", None)
        if not isinstance(claim, Claim) or not callable(run):
            raise ValueError(
                f"{path} needs a CLAIM (lab.protocol.Claim) and a function run(lab). "
                "See a file beside it."
            )
        if claim.id in entries:
            raise ValueError(
                f"{path} and {entries[claim.id].path} both claim to be {claim.id}. Give one of "
                "them another id."
            )
        entries[claim.id] = Entry(claim, run, path)
    return dict(sorted(entries.items(), key=lambda item: int(item[0].lstrip("C"))))


def choose(names: Sequence[str], entries: Mapping[str, Entry]) -> list[Entry]:
    """The claims of these ids ('C3', 'c3', '3'), or of a kind ('exact', 'weights', 'trained',
    'all').

    Raises:
        ValueError: there is none of that name; near names are listed.
    """
    chosen: dict[str, Entry] = {}
    for name in names:
        if name == "all" or name in ("exact", "weights", "trained"):
            chosen |= {
                key: entry for key, entry in entries.items() if name in ("all", entry.claim.kind)
            }
            continue
        key = name.upper() if name.upper().startswith("C") else f"C{name}"
        if key not in entries:
            near = difflib.get_close_matches(key, entries, 3, 0.5) or list(entries)[:5]
            words = [f"{found} ({entries[found].claim.title})" for found in near]
            raise ValueError(
                f"There is no claim {name!r}. Nearest: {'; '.join(words)}. List them with: "
                "lora-jax claims list."
            )
        chosen[key] = entries[key]
    return list(chosen.values())


def run_claim(entry: Entry, lab: Lab, *, results: Path, command: str) -> dict[str, Any]:
    """Tests the claim, writes its result file and returns what is in it."""
    start = time.perf_counter()
    lab.new_account()
    finding = entry.run(lab)
    own = time.perf_counter() - start - lab.seconds_here()
    result = {
        "format": FORMAT,
        "claim": dataclasses.asdict(entry.claim),
        **dataclasses.asdict(finding),
        # Runs are shared between claims and kept over a stop: all that the claim rests on is
        # counted, whenever it was trained.
        "seconds": round(own + sum(lab.account().values()), 1),
        "runs": sorted(lab.account()),
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


def write_page(entries: Mapping[str, Entry], results: Path, page: Path) -> Path:
    """The page of all claims, with a picture of each that has lines to draw; every figure links to
    the JSON it came from.

    Raises:
        ResultError: a result file is not of the claim as it is tested now.
    """
    found = {
        key: read_result(results / f"{key}.json", entry.claim) for key, entry in entries.items()
    }
    where = _relative(results, page.parent)
    lines = [
        _HEAD.format(count=len(entries), run=sum(result is not None for result in found.values()))
    ]
    lines += [
        "| claim | source | published | ours | verdict | time |",
        "|---|---|---|---|---|---:|",
    ]
    for key, entry in entries.items():
        claim, result = entry.claim, found[key]
        name, ours, verdict, seconds = f"{key} {claim.title}", "", "not run", ""
        if result is not None:
            name, ours = (
                f"[{key}](#{key.lower()}) {claim.title}",
                f"[{result['ours']}]({where}/{key}.json)",
            )
            verdict, seconds = f"**{result['verdict']}**", _time(result["seconds"])
        # A bar, such as that of a norm, would end the cell.
        lines.append(
            "| "
            + " | ".join(
                cell.replace("|", "\\|")
                for cell in (name, claim.source, claim.published, ours, verdict, seconds)
            )
            + " |"
        )
    for key, entry in entries.items():
        if found[key] is not None:
            lines += _section(key, entry, found[key], results, where)
    lines += ["", "## Published counts that do not follow", "", _COUNTS, "", *counts.table()]
    write_text(page, "\n".join(lines) + "\n")
    return page


_HEAD = """\
# Claims of the papers, tested here

Made by `lora-jax claims report` from the JSON files in `claims/results`; do not edit. {run} of {count} claims have been run.
A claim is *reproduced*, *not reproduced* or *inconclusive* by a rule that its file fixed before the run: the predicted sign in
every seed and a 95 % paired-bootstrap interval over the same examples that excludes 0, or, where equality is claimed, an
interval within the tolerance. Arms are compared at their own best learning rate. Runs again: `lora-jax claims run ID`.

S is a LLaMA-like decoder of 1 M weights (width 128, four layers, vocabulary of 1,024, input and output embedding tied), pretrained on the
spot for 1,200 steps on domain A (IMDB reviews). Domain B are sentences of Rotten Tomatoes, in lower case and with spaces around marks;
a training run on it is 100 steps of 16 sentences unless said otherwise, and losses are nats a token on its test split. MiniLM is a real
pretrained sentence encoder of 23 M weights. Brackets hold 95 % intervals.

Where a claim does not hold here, the note ends with the most likely reason as a hypothesis with a rule, and what one more measurement
says of it: *supports* or *refutes*. It changes no verdict; a refuted reason means that the cause is still open.
"""

_COUNTS = """\
Parameter counts, sizes and memory that papers print, where the shapes of the models and the printed hyperparameters give another figure
(`claims/lab/counts.py`; those that do follow are asserted by `tests/claims/test_counts.py` as well)."""


def _section(
    key: str, entry: Entry, result: Mapping[str, Any], results: Path, where: str
) -> list[str]:
    claim, env = entry.claim, result["environment"]
    commit = (env["git"]["commit"] or "unknown")[:10] + (
        " with changes" if env["git"]["dirty"] else ""
    )
    lines = ["", f"## {key}", "", f"**{claim.title}.** {claim.source}: {claim.published}", ""]
    lines += [
        f"Tested: {claim.expected}",
        "",
        f"Found: [{result['ours']}]({where}/{key}.json). **{result['verdict']}**.",
        "",
    ]
    if result["note"]:
        lines += [result["note"], ""]
    if result["diverged"]:
        lines += [f"Diverged: {', '.join(result['diverged'])}.", ""]
    if result["plot"]:
        picture = results / f"{key}.png"
        draw(result["plot"], picture)
        lines += [f"![{claim.title}]({where}/{key}.png)", ""]
    seeds = f"seeds {', '.join(map(str, result['seeds']))}; " if result["seeds"] else ""
    lines.append(
        f"{seeds}{_time(result['seconds'])} on {env['cpu_count']} CPUs; commit {commit}; `lora-jax "
        f"claims run {key}`"
    )
    return lines


def draw(plot: Mapping[str, Any], path: Path) -> None:
    """A picture of lines: {'x': label, 'y': label, 'lines': {name: [[x, y], ...]}, 'log': 'x', 'y'
    or 'xy'}; or a 'heat' map by name.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if "heat" in plot:
        figure, axes = plt.subplots(
            1,
            len(plot["heat"]),
            figsize=(3.2 * len(plot["heat"]), 2.8),
            layout="constrained",
            squeeze=False,
        )
        for axis, (name, grid) in zip(axes[0], plot["heat"].items()):
            shade = axis.imshow(grid, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis")
            axis.set(title=name, xlabel=plot["x"], ylabel=plot["y"])
        figure.colorbar(shade, ax=list(axes[0]))
    else:
        figure, axis = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
        for (name, points), marker in zip(plot["lines"].items(), "o^sDvPX*" * 4):
            xs, ys = (
                zip(*((x, y) for x, y in points if x is not None and y is not None))
                if points
                else ((), ())
            )
            axis.plot(xs, ys, marker=marker, markersize=4, linewidth=1.3, label=name)
        axis.set(xlabel=plot["x"], ylabel=plot["y"])
        if "x" in plot.get("log", ""):
            axis.set_xscale("log")
        if "y" in plot.get("log", ""):
            axis.set_yscale("log")
        axis.grid(color="#e6e6e6")
        axis.legend(frameon=False, fontsize=8)
    # Without the version and the time in it, the same figures give the same file.
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _relative(path: Path, start: Path) -> str:
    import os

    return Path(os.path.relpath(path, start)).as_posix()


def say(text: str) -> None:
    """Prints progress."""
    print(text, file=sys.stderr, flush=True)
