"""The report as one HTML file that needs no network: pictures inside, tables that sort, light and
dark.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_jax.core.escapes import html_of, in_html
from lora_jax.metrics.score import Score
from lora_jax.statistics.interval import Interval
from lora_jax.statistics.variance import REST
from lora_jax.sweeps.cells import Cell
from lora_jax.sweeps.comparisons import LOSS
from lora_jax.sweeps.findings import Findings
from lora_jax.sweeps.over_tasks import over_tasks

_ASSETS = Path(__file__).parent / "assets"
TASKS_NOTE = (
    "Settings that ran on all tasks, by their mean rank on them. Interquartile mean: of the middle "
    "half of all runs. P: how likely a run of the first setting scores above one of this, on the mean "
    "of the tasks. In brackets, 95% intervals over seeds, one at a time; from fewer than ten runs a "
    "task they are too short (Agarwal et al. 2021)."
)
MOST_ROWS = 500  # of a table; more are in the CSV files beside the page
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # headings, rows


@dataclass(frozen=True)
class Page:
    """What a report says in both of its files, but for its pictures.

    `headline`, `state`, `notes` and the sentences may use Markdown's ** and `; tables are given as
    texts, cell by cell. `failed` are (run id, error), `waiting` (run id, status), `commands` (what
    it does, command line).
    """

    headline: str
    state: str
    supported: Sequence[str]
    unsupported: Sequence[str]
    fairness: Sequence[str]
    cells: Table
    notes: str
    tasks: Table
    spread: Table
    tests: Table
    failed: Sequence[tuple[str, str]]
    waiting: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]


def html_page(page: Page, pictures: Mapping[str, str]) -> str:
    """The page as one file, with its pictures, {title: <svg> element}."""
    parts = [
        "<h1>Sweep report</h1>",
        f'<p class="lead">{html_of(page.headline)}</p>',
        f'<p class="muted">{html_of(page.state)}</p>',
        '<section class="verdict"><div><h2>What the data support</h2>',
        _sentences(page.supported, "Nothing beyond a description of these runs."),
        "</div><div><h2>What they do not support</h2>",
        _sentences(page.unsupported, "Nothing stands out."),
        "</div></section>",
        "<h2>What was tuned, and what was held fixed</h2>",
        _sentences(page.fairness, "Nothing is known of it."),
        "<h2>Cells</h2>",
        table("cells", *page.cells),
        f'<p class="muted">{html_of(page.notes)}</p>',
    ]
    if page.tasks[1]:
        parts += ["<h2>Over all tasks</h2>", table("tasks", *page.tasks)]
        parts.append(f'<p class="muted">{html_of(TASKS_NOTE)}</p>')
    for name, svg in pictures.items():
        parts.append(f"<h2>{in_html(name)}</h2><figure>{svg}</figure>")
        if name == "Where the spread comes from":
            parts.append(table("spread", *page.spread))
        if name == "Paired differences":
            parts.append(table("tests", *page.tests))
    if "Paired differences" not in pictures and page.tests[1]:
        parts += [
            "<h2>Paired differences</h2>",
            table("tests", *page.tests),
            '<p class="muted">One seed: no intervals, and p-values on examples alone.</p>',
        ]

    if page.failed:
        parts += ["<h2>Failed runs</h2>", table("failed", ("run", "error"), page.failed)]
    if page.waiting:
        waiting = table("waiting", ("run", "status"), page.waiting)
        parts += ["<h2>Runs not finished yet</h2>", waiting]
    parts.append("<h2>How to make this again</h2>")
    parts += [
        f"<p>{in_html(what)}</p><pre>{_lines(command)}</pre>" for what, command in page.commands
    ]
    return _document("\n".join(parts))


def _document(body: str) -> str:
    """The file around what the page says, with its style and its script inside."""
    style = (_ASSETS / "report.css").read_text(encoding="utf-8")
    script = (_ASSETS / "report.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Sweep report</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<button id="theme" type="button" title="light or dark">light / dark</button>\n'
        f"<main>\n{body}\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def table(name: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A <table> that sorts by a click on a heading; a cell sorts by the number that it starts with,
    if every cell of the column has one.
    """
    shown = rows[:MOST_ROWS]
    numeric = [_is_numeric([row[column] for row in shown]) for column in range(len(headings))]
    head = "".join(
        f"<th{' class=number' if is_number else ''}>"
        f"<button type=button>{in_html(text)}</button></th>"
        for text, is_number in zip(headings, numeric, strict=True)
    )
    body = "\n".join(
        f"<tr>{''.join(_table_cell(*cell) for cell in zip(row, numeric, strict=True))}</tr>"
        for row in shown
    )
    more = ""
    if len(rows) > len(shown):
        counts = f"{len(shown)} of {len(rows)} rows"
        more = f'<p class="muted">{counts}; all are in the CSV files beside this page.</p>'
    return (
        f'<div class="scroll"><table id="{name}"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>{more}"
    )


def _is_numeric(texts: Sequence[str]) -> bool:
    """Whether there is a number, and otherwise only what says that there is none."""
    others = [text for text in texts if _number(text) is None]
    return len(others) < len(texts) and all(text in ("", "n/a", "–") for text in others)


def _table_cell(text: str, is_number: bool) -> str:
    value = _number(text) if is_number else None
    key = "" if value is None else f' data-key="{value!r}"'
    return f"<td{' class=number' if is_number else ''}{key}>{in_html(text)}</td>"


def told(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The table without the columns in which no row says anything, such as limits with one seed."""
    says = lambda text: text not in ("", "–") and not text.startswith("n/a")
    kept = [n for n in range(len(headings)) if not rows or any(says(row[n]) for row in rows)]
    return [headings[n] for n in kept], [[row[n] for n in kept] for row in rows]


def spread_table(findings: Findings) -> Table:
    """(headings, rows) of the analysis of variance."""
    headings = (
        "source",
        "levels",
        "degrees of freedom",
        "share, %",
        "omega squared (of these levels), %",
        "F",
        "p",
        "p, corrected",
        "tested against (degrees of freedom)",
    )

    rows = []
    for source in findings.spread.sources if findings.spread else ():
        known = source.freedom > 0
        rows.append(
            [
                "rest" if source.name == REST else source.name,
                str(findings.spread.levels.get(source.name, "")),
                str(source.freedom),
                f"{100 * source.share:.1f}" if known or source.name == REST else "not told apart",
                _text(100 * source.corrected, ".1f") if source.name != REST else "",
                _text(source.f, ".2f"),
                _text(source.p, ".2g"),
                _text(source.adjusted, ".2g"),
                f"{source.against} ({source.error_freedom})" if source.against else "",
            ]
        )
    return told(headings, rows)


def tests_table(found: Findings, said: Score) -> Table:
    """(headings, rows) of the paired tests: levels of each axis first, then slopes, the mean of all
    adapters against baselines, and the best cell against the others; all by the metric, then by the loss.
    """
    headings = (
        "what",
        "first",
        "second",
        f"difference,{said.points}" if said.points else "difference",
        "low",
        "high",
        "pairs of seeds",
        "matched settings",
        "p",
        "p, signs",
        "p, corrected",
    )

    loss = replace(said, name=LOSS, higher_is_better=False, share=False)
    asked = [(found.by_metric, said, ""), (found.by_loss, loss, " in loss")]
    rows = [
        [
            *(one.axis, one.first, one.second),
            *(score.difference(v) + which for v in (one.test.difference, *one.limits)),
            *(str(one.test.count), str(one.matched)),
            *(_text(p, ".2g") for p in (one.p, one.test.p_signs, one.adjusted)),
        ]
        for tests, score, which in asked
        for one in (
            *tests.between_levels,
            *tests.along_axes,
            *tests.against_baselines,
            *tests.against_best,
        )
    ]

    by_examples = [
        [
            *("best cell, on examples", one.best.name, one.other.name),
            *(f"{100 * one.difference:+.2f} points right", "n/a", "n/a"),
            *(str(one.seeds), "1"),
            *(_text(one.p, ".2g"), "n/a", _text(one.adjusted, ".2g")),
        ]
        for one in found.on_examples
    ]
    return told(headings, rows + by_examples)


def tasks_table(cells: Sequence[Cell], said: Score) -> Table:
    """(headings, rows) of the settings over several tasks; no row where there is one task."""
    headings = (
        "setting",
        "tasks",
        "runs",
        "mean rank",
        f"interquartile mean{', %' * said.share}",
        "P(first is better)",
    )
    middle = lambda one: _limits(one.middle, said.number)
    better = lambda one: _limits(one.improvement, "{:.2f}".format)
    rows = [
        [one.name, str(len(one.scores)), str(sum(map(len, one.scores))), f"{one.rank:.1f}", middle(one), better(one)]
        for one in over_tasks(cells)
    ]  # fmt: skip
    return told(headings, rows)


def _limits(interval: Interval | None, text: Callable[[float], str]) -> str:
    if interval is None:
        return "n/a"
    return f"{text(interval.value)} ({text(interval.low)} to {text(interval.high)})"


def _lines(text: str) -> str:
    return "\n".join(map(in_html, text.split("\n")))


def _sentences(sentences: Sequence[str], otherwise: str) -> str:
    if not sentences:
        return f"<p>{in_html(otherwise)}</p>"
    return f"<ul>{''.join(f'<li>{html_of(text)}</li>' for text in sentences)}</ul>"


def _text(value: float, form: str) -> str:
    return "n/a" if math.isnan(value) else format(value, form)


def _number(text: str) -> float | None:
    found = re.match(r"[-+−]?[\d,]*\.?\d+(e[-+]?\d+)?(?= |\Z)", text)
    return float(found.group().replace(",", "").replace("−", "-")) if found else None
