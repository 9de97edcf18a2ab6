"""The page that is made of the claims' result files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab import counts
from lab.ledger import Entry, read_result
from lora_jax.sweeps.store import write_text

VERDICTS = ("reproduced", "opposite", "not reproduced", "inconclusive")
# Why a part is not reproduced, by the rule that it was judged by.
WHY = {
    "effect": "too small to matter, or outside of the range that is claimed",
    "equal": "they differ by more than the margin",
    "not worse": "it is worse by more than the margin",
}
EARLIER = "earlier.json"  # what the same claims gave under the protocol before P


def write_page(entries: Mapping[str, Entry], results: Path, page: Path) -> Path:
    """The page of all claims, with a picture of each that has something to draw; every figure links
    to the JSON that it came from.

    Raises:
        ResultError: a result file is not of the claim as it is tested now.
    """
    found = {
        key: read_result(results / f"{key}.json", entry.claim) for key, entry in entries.items()
    }
    earlier = json.loads((results / EARLIER).read_text()) if (results / EARLIER).is_file() else {}
    where = Path(os.path.relpath(results, page.parent)).as_posix()
    lines = [_HEAD.format(count=len(entries), run=sum(one is not None for one in found.values()))]
    lines += [*_tally(entries, found, earlier), "", _total(found.values()), ""]
    lines += [
        "| claim | kind | tested on | published | ours | verdict | before P | time |",
        "|---|---|---|---|---|---|---|---:|",
    ]
    for key, entry in entries.items():
        lines.append(_row(key, entry, found[key], earlier.get(key), where))
    for key, entry in entries.items():
        if found[key] is not None:
            lines += _section(key, entry, found[key], earlier.get(key), results, where)
    lines += ["", "## Published counts that do not follow", "", _COUNTS, "", *counts.table()]
    write_text(page, "\n".join(lines) + "\n")
    return page


_HEAD = """\
# Claims of the papers, tested here

Made by `lora-jax claims report` from the JSON files in `claims/results`; do not edit. {run} of {count} claims have been run under
protocol P, below. Run one again with `lora-jax claims run ID`; `lora-jax claims verify ID` trains it anew in a folder of its own and
compares every figure with the one that stands here.

**Models.** S is a LLaMA-like decoder (width 160, four layers, 1.5 M weights, vocabulary of 1,024, embeddings tied), pretrained on the spot
for 3,600 steps of 32 pieces on domain A (IMDB reviews) under three seeds. Domain B are sentences of Rotten Tomatoes, in lower case and with
spaces around marks; a training run on it is 100 steps of 16 sentences unless said otherwise. MiniLM is a real pretrained sentence encoder
of 23 M weights, tuned for 100 steps of 16 sentences on the sentiment of Rotten Tomatoes. Losses are nats a token (or a sentence) on the
test split.

**Protocol P.** Each arm has its own learning rate: a grid of factor 2, grown until two points stand on each side of the best by the mean
validation loss of two seeds that are not used again, then the lowest point of the parabola there. Scored are five other seeds, which
stand on three pretrainings. The embedding is frozen in every arm, full fine-tuning included, unless an arm says otherwise. A run that
diverges counts with the losses of the untuned model. What matters is a tenth of what the better arm gains on the untuned model,
unless the claim's own limits say otherwise; limits were fixed before the runs.

**Brackets** hold 95 % intervals over other seeds *and* other examples at once (`lora_jax.statistics.crossed_mean`), or, for a figure that
each seed has one of, Student's t over seeds. *Reproduced*: an effect whose interval lies above 0 and whose value is at least what matters;
an equality whose 90 % interval lies within the margin (two one-sided tests at 5 %). *Opposite*: the effect's interval lies below 0.
*Not reproduced*: the interval shows that the effect is smaller than what matters, or the difference larger than the margin. Otherwise
*inconclusive*. A claim of several parts is reproduced, or the opposite of it is so, if that holds for all of them. Every rule was run on made-up outcomes without its effect and must fail there
(`tests/claims/test_nulls.py`).

**Kinds.** *theorem*: mathematics, tested to rounding; *accounting*: bytes and counts; *weights*: a pretrained model without training;
*trained*: an effect of training.

**Time** is what a claim took of two cores with all that it rests on (a process bound to one core counts half); ≈ is what one that was not run is expected to take beyond pretrainings
and the arms that it shares with others (S of one width and 3,600 steps: 3 to 8 minutes a seed).

Where the likely reason why a claim does not hold was tested, its note ends with that hypothesis, and what one more measurement says of it by a
rule fixed before: *supports* or *refutes*. It changes no verdict; a refuted reason, or none, means that the cause is open.
"""

_COUNTS = """\
Parameter counts, sizes and memory that papers print, where the shapes of the models and the printed hyperparameters give another figure
(`claims/lab/counts.py`; those that do follow are asserted by `tests/claims/test_counts.py` as well)."""


def _tally(
    entries: Mapping[str, Entry],
    found: Mapping[str, Mapping[str, Any] | None],
    earlier: Mapping[str, Any],
) -> Iterable[str]:
    """How many claims have which verdict, by kind, and how many had before."""
    columns = (*VERDICTS, "out of scope", "not run")
    yield "| | " + " | ".join(columns) + " |"
    yield "|---" + "|---:" * len(columns) + "|"

    def row(name: str, verdicts: Iterable[str]) -> str:
        count = Counter(verdicts)
        cells = [count[verdict] for verdict in columns]
        return f"| {name} | " + " | ".join(map(str, cells)) + " |"

    now = {key: _verdict(entry, found[key]) for key, entry in entries.items()}
    for kind in dict.fromkeys(entry.claim.kind for entry in entries.values()):
        yield row(kind, (now[key] for key, entry in entries.items() if entry.claim.kind == kind))
    yield row("**all**", now.values())
    if earlier:
        yield row("before P", (one["verdict"] for one in earlier.values()))


def _total(results: Iterable[Mapping[str, Any] | None]) -> str:
    """How long everything took, runs and pretrainings that claims share counted once."""
    there = [result for result in results if result is not None]
    shared: dict[str, float] = {}
    for result in there:
        for name, took in result["runs"].items():
            if abs(shared.setdefault(name, took) - took) > 0.1:
                raise ValueError(
                    f"{result['claim']['id']} counts {took} s for {name}, and another claim "
                    f"{shared[name]} s: run one of them again."
                )
    hours = (sum(shared.values()) + sum(result["own_seconds"] for result in there)) / 3600
    return (
        f"In all {hours:.1f} h on two cores for {len(shared)} runs and pretrainings, each counted "
        "once; a claim's own time counts all that it rests on."
    )


def _verdict(entry: Entry, result: Mapping[str, Any] | None) -> str:
    if entry.claim.out_of_scope:
        return "out of scope"
    return "not run" if result is None else result["verdict"]


def _row(key: str, entry: Entry, result: Mapping[str, Any] | None, before: Any, where: str) -> str:
    claim, name, ours = entry.claim, f"{key} {entry.claim.title}", ""
    seconds = f"≈ {claim.minutes:g} min" if claim.minutes else ""
    if result is not None:
        name = f"[{key}](#{key.lower()}) {claim.title}"
        said = "; ".join(part["ours"] for part in result["parts"])
        ours, seconds = f"[{said}]({where}/{key}.json)", _time(result["seconds"])
    elif claim.out_of_scope:
        ours = claim.out_of_scope
    elif before:
        ours = f"(before P: {before['ours']})"
    verdict = f"**{_verdict(entry, result)}**"
    if result is not None and len({part["verdict"] for part in result["parts"]}) > 1:
        verdict += ": " + ", ".join(part["verdict"] for part in result["parts"])
    published = f"{claim.source}: {claim.published}"
    was = before["verdict"] if before else ""
    cells = (name, claim.kind, claim.models, published, ours, verdict, was, seconds)
    # A bar, such as that of a norm, would end the cell.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _with_reason(part: Mapping[str, Any]) -> str:
    """The verdict on a part, and why it is not reproduced."""
    why = WHY.get(part["rule"]) if part["verdict"] == "not reproduced" else None
    return f"{part['verdict']}: {why}" if why else part["verdict"]


def _section(
    key: str, entry: Entry, result: Mapping[str, Any], before: Any, results: Path, where: str
) -> list[str]:
    claim, env = entry.claim, result["environment"]
    commit = (env["git"]["commit"] or "unknown")[:10]
    commit += " with changes" if env["git"]["dirty"] else ""
    lines = ["", f"## {key}", "", f"**{claim.title}.** {claim.source}: {claim.published}", ""]
    lines += [f"Tested: {claim.expected}", ""]
    if claim.regime:
        lines += [f"Where the answer holds: {claim.regime}", ""]
    if claim.distance:
        lines += [f"Distance from the source: {claim.distance}", ""]
    lines += [
        f"- {part['says']}: {part['ours']}. **{_with_reason(part)}** ({part['rule']})"
        for part in result["parts"]
    ]
    lines += ["", f"All figures: [{key}.json]({where}/{key}.json).", ""]
    if result["note"]:
        lines += [result["note"].strip(), ""]
    if before and before["verdict"] != result["verdict"]:
        lines += [f"Before P: {before['verdict']} ({before['ours']}).", ""]
    if result["diverged"]:
        lines += [f"Diverged: {', '.join(result['diverged'])}.", ""]
    if result["plot"]:
        draw(result["plot"], results / f"{key}.png")
        lines += [f"![{claim.title}]({where}/{key}.png)", ""]
    seeds = f"seeds {', '.join(map(str, result['seeds']))}; " if result["seeds"] else ""
    lines.append(
        f"{seeds}{_time(result['seconds'])} of two cores, pretrainings counted; "
        f"commit {commit}; `lora-jax claims run {key}`"
    )
    return lines


def draw(plot: Mapping[str, Any], path: Path) -> None:
    """A picture, by which of these there is:

    'lines': {name: [[x, y] or [x, y, low, high], ...]} over axes 'x' and 'y', 'log' of 'x', 'y' or
        'xy'; 'published': {name: y} are lines across.
    'forest': {name: {'interval': [value, low, high], 'seeds': [...]}} on an axis 'x'; 'margin' is a
        band around 0, of all rows or in a row of that row, and 'published' as above.
    'heat': {name: rows} over axes 'x' and 'y'.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kind = next(name for name in ("heat", "forest", "lines") if name in plot)
    figure = {"heat": _heat, "forest": _forest, "lines": _lines}[kind](plot, plt)
    # Without the version and the time in it, the same figures give the same file.
    figure.savefig(path, dpi=90, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _heat(plot: Mapping[str, Any], plt: Any) -> Any:
    count = len(plot["heat"])
    size = dict(figsize=(3.2 * count, 2.8), layout="constrained", squeeze=False)
    figure, axes = plt.subplots(1, count, **size)
    for axis, (name, grid) in zip(axes[0], plot["heat"].items()):
        shade = axis.imshow(grid, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis")
        axis.set(title=name, xlabel=plot["x"], ylabel=plot["y"])
    figure.colorbar(shade, ax=list(axes[0]))
    return figure


def _forest(plot: Mapping[str, Any], plt: Any) -> Any:
    rows = list(plot["forest"].items())
    figure, axis = plt.subplots(figsize=(6.4, 0.9 + 0.36 * len(rows)), layout="constrained")
    for place, (_, row) in enumerate(reversed(rows)):
        value, low, high = row["interval"]
        seeds, margin = row.get("seeds", []), row.get("margin")
        if margin:
            band = dict(color="#dddddd", alpha=0.5, zorder=0)
            axis.barh(place, 2 * margin, left=-margin, height=0.9, **band)
        axis.plot(seeds, [place] * len(seeds), "o", ms=3, alpha=0.6, color="#4070b0")
        axis.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="ks", ms=5, capsize=3)
    axis.axvline(0, color="#888888", linewidth=0.8)
    if plot.get("margin"):
        axis.axvspan(-plot["margin"], plot["margin"], color="#dddddd", alpha=0.5, zorder=0)
    for name, value in plot.get("published", {}).items():
        axis.axvline(value, color="#c04040", linestyle="--", linewidth=1, label=name)
    axis.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)], fontsize=8)
    axis.set(xlabel=plot["x"], ylim=(-0.6, len(rows) - 0.4))
    if plot.get("published"):
        axis.legend(frameon=False, fontsize=8)
    return figure


def _lines(plot: Mapping[str, Any], plt: Any) -> Any:
    figure, axis = plt.subplots(figsize=(7.4, 3.6), layout="constrained")
    for (name, points), marker in zip(plot["lines"].items(), "o^sDvPX*" * 4):
        rows = [row for row in points if row[0] is not None and row[1] is not None]
        xs, ys = [row[0] for row in rows], [row[1] for row in rows]
        (line,) = axis.plot(xs, ys, marker=marker, markersize=4, linewidth=1.3, label=name)
        ranged = [row for row in rows if len(row) == 4]
        if ranged:
            xs, _, low, high = zip(*ranged)
            axis.fill_between(xs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    for name, value in plot.get("published", {}).items():
        axis.axhline(value, color="#c04040", linestyle="--", linewidth=1, label=name)
    axis.set(xlabel=plot["x"], ylabel=plot["y"])
    if "x" in plot.get("log", ""):
        axis.set_xscale("log")
        tried = sorted({row[0] for points in plot["lines"].values() for row in points})
        if len(tried) <= 8:  # ranks and such: the values themselves, not powers of ten
            axis.set_xticks(tried, [f"{x:g}" for x in tried])
            axis.minorticks_off()
    if "y" in plot.get("log", ""):
        axis.set_yscale("log")
    axis.grid(color="#e6e6e6")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
