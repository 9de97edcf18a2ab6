"""The report of a sweep: an answer in words, tables, and pictures that a stranger can read."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from lora_jax.config import ADAPTERS, resolve_targets
from lora_jax.core.escapes import as_code, in_markdown, in_terminal, one_line
from lora_jax.metrics.score import Score
from lora_jax.sweeps.cells import (
    Cell,
    cells_of,
    facets,
    gather,
    measure,
    pareto,
    seed_of,
    target_names,
    word_of,
)
from lora_jax.sweeps.comparisons import adapters, choice, ranked
from lora_jax.sweeps.costs import cost_notes
from lora_jax.sweeps.fairness import chosen, fairness
from lora_jax.sweeps.files import disk, without_collection, write_csv
from lora_jax.sweeps.findings import Findings, findings_of
from lora_jax.sweeps.html_report import (
    TASKS_NOTE,
    Page,
    html_page,
    spread_table,
    tasks_table,
    tests_table,
)
from lora_jax.sweeps.settings import NOT_READ, settings_of
from lora_jax.sweeps.store import RunRecord, write_text

_IDENTITY = ("run_id", "method", "format", "rank", "targets", "seed")
_LEFT = ("method", "base", "targets")  # columns of words
# Of the report alone: what is left of its table fits 100 columns.
_IN_REPORT = ("median", "bits a weight", "peak, MB", "tokens/s")
_MOST_TESTS = 40
_MOST_NOTES = 3  # of the data
_TESTS_NOTE = (
    "p: Student's paired t-test over seeds, or of seeds and examples where answers were kept; p, "
    "signs: randomisation test; corrected: Holm, among all pairs of levels, all baselines, or all pairs of "
    "cells of its data and model for the best cell, because it was picked by its score, and never "
    "below the corrected p of the axis as a whole. n/a: one pair of seeds says nothing about the "
    "spread."
)


def write_report(
    roots: str | Path | Sequence[str | Path],
    out_dir: str | Path | None = None,
    *,
    margin: float | None = None,
) -> Path:
    """The path of report.md, written into `out_dir` with report.html (all of it in one file),
    report.csv, cells.csv, settings.csv, tests.csv and pictures.

    Args:
        roots: folders of sweeps, or of single runs.
        out_dir: by default `report` in the first root.
        margin: the smallest difference of the score that matters, in its own unit; None = as the
            runs were configured (`config.report.margin`), or see `margin_of`.

    Raises:
        FileNotFoundError: a root does not exist.
        ValueError: there is no run, or none is finished.
        StoreError: `out_dir` cannot be written.
    """
    return write_and_summarise(roots, out_dir, margin=margin)[0]


@without_collection()
def write_and_summarise(
    roots: str | Path | Sequence[str | Path],
    out_dir: str | Path | None = None,
    *,
    margin: float | None = None,
) -> tuple[Path, Table]:
    """`write_report`, and its table of cells for a terminal; the runs are read once."""
    import lora_jax.sweeps.plots as plots  # matplotlib is slow to import

    folders = [Path(root) for root in ([roots] if isinstance(roots, (str, Path)) else roots)]
    records, pending = gather(folders)
    cells = cells_of(records)
    if not cells:
        raise ValueError(_nothing_finished(folders, records))
    out = Path(out_dir) if out_dir is not None else folders[0] / "report"
    with disk(out):
        out.mkdir(parents=True, exist_ok=True)
    # A value of tuning that diverged is an answer.
    lacking = [record for record in records if record.status != "done" and record.is_scored]
    missing = len(pending) + len(lacking)
    found = findings_of(cells, missing, margin)
    page = _page(cells, found, records, pending, _commands(folders, out_dir, margin, records))

    write_csv(out / "report.csv", _run_rows([record for record in records if record.result]))
    write_csv(out / "cells.csv", [_cell_row(cell) for cell in cells])
    write_csv(out / "settings.csv", _settings_rows(cells))
    headings, rows = page.tests
    tests = [dict(zip(headings, row, strict=True)) for row in rows]
    write_csv(out / "tests.csv", tests, headings)

    pictures = plots.draw(cells, found, out, footnote(cells))
    files = {title: name for title, (name, _) in pictures.items()}
    drawn = {title: svg for title, (_, svg) in pictures.items()}
    write_text(out / "report.md", _markdown(page, files))
    write_text(out / "report.html", html_page(page, drawn))
    return out / "report.md", summary_table(cells)


def summary_table(cells: Sequence[Cell]) -> Table:
    """A rich table with a row for each cell, the best score in bold: the report's, less what is
    seldom looked at.
    """
    said = measure(cells)
    table = Table(
        title=f"Mean test {said.label} ± standard error",
        caption=_error_kind(cells),
        header_style="bold",
        box=box.SIMPLE_HEAD,
    )
    headings = _headings(said, cells)
    shown = [number for number, heading in enumerate(headings) if heading not in _IN_REPORT]
    for heading in (headings[number] for number in shown):
        # What is long is folded, and no named set of targets.
        least = len("query+value") if heading == "targets" else None
        table.add_column(heading, justify="left" if heading in _LEFT else "right", min_width=least)

    best = set()
    for alike in facets(cells).values():
        merits = list(map(choice(alike).merit, alike))
        best |= {id(cell) for cell, merit in zip(alike, merits) if merit == max(merits)}
    for cell, row in zip(cells, _rows(cells, said), strict=True):
        words = (in_terminal(row[number]) for number in shown)
        table.add_row(*words, style="bold" if id(cell) in best else "")
    return table


def headline(cells: Sequence[Cell]) -> str:
    """The answer in two or three sentences: the best adapter, the cheapest that is as good, and the
    baselines; for each data set and model where they differ.
    """
    return " ".join(_headline(alike) for alike in facets(cells).values())


def _headline(cells: Sequence[Cell]) -> str:
    said, arms = measure(cells), adapters(cells)
    by, best = choice(arms), ranked(arms)[0]
    ties = sum(by.merit(cell) == by.merit(best) for cell in arms) - 1
    # The first of a tie is the first in the table, and no better than the others.
    shared = (
        f" (so {'has' if ties == 1 else 'have'} {ties} other{'s' * (ties > 1)})" if ties else ""
    )
    scored = "" if by.split == "test" else f"{shared}; its test {said.label} is"
    text = (
        f"**{in_markdown(best.name)}** has {by.words}{scored or ','} "
        f"{_with_error(best, said)}{'' if scored else shared}{_size(best)}."
    )

    error = 0.0 if math.isnan(best.standard_error) else best.standard_error
    close = [cell for cell in pareto(arms) if cell.merit >= best.merit - error]
    if close and close[0] is not best:
        cheapest = close[0]
        within = "within one standard error of it" if error else "with the same score"
        text += (
            f" The smallest {within} is **{in_markdown(cheapest.name)}**, "
            f"{_with_error(cheapest, said)}{_size(cheapest)}."
        )
    elif close and error:
        text += " No smaller cell is within one standard error of it."
    baselines = [
        f"{in_markdown(cell.name)} {_with_error(cell, said)}"
        for cell in cells
        if cell.rank is None and cell is not best
    ]
    return text + (f" For comparison: {', '.join(baselines)}." if baselines else "")


def footnote(cells: Sequence[Cell]) -> str:
    """Seeds, model, data, size of the test set, commit and device, for the foot of a picture."""
    runs = [run for cell in cells for run in cell.runs]
    configs, surroundings = [run.config for run in runs], [run.environment for run in runs]
    seeds = sorted({cell.seeds for cell in cells})
    commits = [_commit(environment.get("git") or {}) for environment in surroundings]
    devices = [(environment.get("device") or {}).get("kind") for environment in surroundings]
    span = "-".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    parts = [
        f"{span} seed{'s' if seeds[-1] > 1 else ''} a cell",
        _distinct((config.get("model") or {}).get("name") for config in configs),
        _distinct((config.get("data") or {}).get("name") for config in configs),
        _tested(runs),
        _distinct(devices),
        f"commit {_distinct(commits)}",
    ]
    return " · ".join(parts)


def _tested(runs: Sequence[RunRecord]) -> str:
    """How large the test set is, in records, and in what the score was counted on."""
    examples = _distinct(run.result.examples.get("test") for run in runs)
    score = runs[0].result.score("test")
    counted = (
        "" if score.unit == "records" or not score.count else f", {score.count:,} {score.unit}"
    )
    return f"{examples} test examples{counted}"


def _error_kind(cells: Sequence[Cell]) -> str:
    kinds = {cell.error_kind for cell in cells}
    says = {
        "seeds": "± standard error of the mean over seeds",
        "binomial": "(b) one seed: binomial standard error of the test set, so the spread between "
        "seeds is not known",
        "unknown": "no ±: one seed, and this score has no error of its own",
    }
    return "; ".join(says[kind] for kind in says if kind in kinds)


def _with_error(cell: Cell, said: Score, unit: bool = True) -> str:
    """'81.2 ± 0.4 %', '0.613 ± 0.012'; (b) marks a binomial error."""
    text = said.number(cell.value)
    if cell.error_kind != "unknown":
        text += f" ± {said.number(cell.standard_error)}"
    text += " (b)" if cell.error_kind == "binomial" else ""
    return f"{text} %" if unit and said.share else text


def _chosen_by(cells: Sequence[Cell]) -> str:
    by = choice(adapters(cells))
    if by.split == "test":
        return (
            "The best cell was chosen on the test set, as not all runs have a validation score, so "
            "its score is a little optimistic."
        )
    return f"The best cell was chosen by {by.words}, and no test score had a part in it."


def _matters(found: Findings, said: Score) -> str:
    if found.margin is None:
        return (
            "What difference would be too small to matter is not set (config.report.margin), so no "
            "settings are called alike."
        )
    size = f"{said.difference(found.margin, '')}{said.points}"
    return f"Settings are called alike if they differ by less than {size} (config.report.margin)."


def _size(cell: Cell) -> str:
    if cell.stored_bytes is None:
        return ""
    return f", with {cell.stored_bytes / 1e6:.1f} MB of base and adapter"


def _tuned(cells: Sequence[Cell]) -> list[str]:
    """The settings that were tuned, in words."""
    return list(dict.fromkeys(word_of(cell.curve.setting) for cell in cells if cell.curve))


def _headings(said: Score, cells: Sequence[Cell]) -> tuple[str, ...]:
    return (
        *_LEFT, "rank", *(f"{word}, tuned" for word in _tuned(cells)), f"test {said.label}{', %' * said.share}",
        *(["median"] if _has_medians(cells) else []), *(["bits a byte"] if _has_bytes(cells) else []), "seeds", "trainable", "base, MB", "bits a weight", "adapter, MB", "peak, MB",
        "tokens/s", "time, s",
    )  # fmt: skip


def _has_medians(cells: Sequence[Cell]) -> bool:
    """Whether a cell has enough seeds for a median that is no mean."""
    return max(cell.seeds for cell in cells) > 2


def _has_bytes(cells: Sequence[Cell]) -> bool:
    """Whether these are language models whose losses can be counted by the bytes of their texts."""
    return any(cell.mean("test_bits_per_byte") is not None for cell in cells)


def _rows(cells: Sequence[Cell], said: Score) -> list[list[str]]:
    """The rows of a table of cells, under `_headings`."""
    tuned, per_byte, medians = _tuned(cells), _has_bytes(cells), _has_medians(cells)
    return [_row(cell, said, tuned, per_byte, medians) for cell in cells]


def _row(cell: Cell, said: Score, tuned: Sequence[str], per_byte: bool, medians: bool) -> list[str]:
    own = cell.curve and word_of(cell.curve.setting)
    return [
        " ".join((cell.method, cell.variant)).strip(),
        cell.format,
        cell.targets or "",
        "" if cell.rank is None else str(cell.rank),
        *(chosen(cell) if word == own else "" for word in tuned),
        _with_error(cell, said, unit=False),
        *([said.number(cell.median)] if medians else []),
        *([_number(cell.mean("test_bits_per_byte"), 1, 4)] if per_byte else []),
        str(cell.seeds),
        _number(cell.mean("trainable_parameters"), 1, 0),
        _number(cell.mean("base_bytes"), 1e6, 1),
        _number(cell.mean("base_bits_per_weight"), 1, 2),
        _number(cell.mean("adapter_bytes"), 1e6, 2),
        _number(cell.mean("peak_bytes"), 1e6, 1),
        _number(cell.mean("tokens_per_second"), 1, 0),
        _number(cell.mean("seconds"), 1, 0),
    ]


def _number(value: float | None, unit: float, digits: int) -> str:
    return "n/a" if value is None else f"{value / unit:,.{digits}f}"


def _cell_row(cell: Cell) -> dict[str, Any]:
    """A row of cells.csv: fractions and bytes, not rounded; every score that all its seeds have."""
    row = cell.runs[0].result.row()
    return {
        "cell": cell.name, "method": cell.method, "format": cell.format, "rank": cell.rank, "targets": cell.targets,
        "seeds": cell.seeds, "metric": cell.score.name, "value": cell.value, "median": cell.median,
        "standard_error": None if cell.error_kind == "unknown" else cell.standard_error,
        "standard_error_kind": cell.error_kind,
        **({f"tuned {cell.curve.setting}": cell.curve.best, "tuned_at_edge": cell.curve.edge} if cell.curve else {}),
        **{key: cell.mean(key) for key, value in row.items() if not isinstance(value, str)},
    }  # fmt: skip


def _settings_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row of settings.csv for each cell: every setting, those in which cells differ first."""
    settings = [settings_of(cell.runs[0])[1] for cell in cells]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    varied = {key for key in keys if len({str(one.get(key, NOT_READ)) for one in settings}) > 1}
    keys.sort(key=lambda key: key not in varied)
    return [
        {"cell": cell.name, **{key: one.get(key, NOT_READ) for key in keys}}
        for cell, one in zip(cells, settings, strict=True)
    ]


def _run_rows(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    names = target_names(records)
    return [_run_row(record, names) for record in records]


def _run_row(record: RunRecord, names: Mapping[str, str]) -> dict[str, Any]:
    """A row of report.csv: which run it is, and all that its result holds."""
    config = record.config
    row = dict.fromkeys(_IDENTITY) | {"run_id": record.run_id, "method": config["method"]}
    row["seed"] = seed_of(record)
    if record.curve is not None:
        row["scored"] = record.is_scored
    if config["method"] in ADAPTERS:
        row |= {"format": config["quant"]["format"], "rank": config["lora"]["rank"]}
        row["targets"] = names[resolve_targets(config["lora"]["targets"])]
    return row | record.result.row()


def _page(
    cells: Sequence[Cell],
    found: Findings,
    records: Sequence[RunRecord],
    pending: Sequence[str],
    commands: Sequence[tuple[str, str]],
) -> Page:
    said, counts = measure(cells), Counter(record.status for record in records)
    counted = [f"{number} {status}" for status, number in sorted(counts.items())]
    diverged = sum((run.error or "").startswith("Diverged") for run in records)
    counted += [f"{diverged} of these diverged"] if diverged else []
    counted += [f"{len(pending)} pending"] if pending else []
    aside = sum(not record.is_scored for record in records)
    counted += [f"{aside} of these to tune by, which no score counts"] if aside else []
    waiting = [run for run in records if run.status in ("running", "interrupted")]

    return Page(
        headline=headline(cells),
        state=f"Runs: {', '.join(counted)}. {in_markdown(footnote(cells))}.{_of_the_data(cells)}",
        supported=(*found.conclusions.supported, *found.conclusions.alike),
        unsupported=found.conclusions.unsupported,
        fairness=fairness(cells, [run.curve for run in records if run.curve is not None]),
        cells=(_headings(said, cells), _rows(cells, said)),
        notes=f"{_error_kind(cells)}. {_chosen_by(cells)} {_matters(found, said)} "
        f"{cost_notes(cells)} Every setting of every cell: settings.csv.",
        tasks=tasks_table(cells, said),
        spread=spread_table(found),
        tests=tests_table(found, said),
        failed=[
            (run.run_id, one_line(" ".join(str(run.error).split())))
            for run in records
            if run.status == "failed"
        ],
        waiting=[(run.run_id, run.status) for run in waiting]
        + [(name, "pending") for name in pending],
        commands=commands,
    )


def _of_the_data(cells: Sequence[Cell]) -> str:
    """What the tasks of these runs said of their data, such as rows that were left out."""
    notes = list(dict.fromkeys(run.result.note for cell in cells for run in cell.runs))
    said = [in_markdown(note) for note in notes if note]
    more = len(said) - _MOST_NOTES
    said = said[:_MOST_NOTES] + ([f"{more} notes more are in report.csv."] if more > 0 else [])
    return f" Of the data: {' '.join(said)}" if said else ""


def _commands(
    folders: Sequence[Path],
    out_dir: str | Path | None,
    margin: float | None,
    records: Sequence[RunRecord],
) -> list[tuple[str, str]]:
    given = {"--out": out_dir, "--margin": margin}
    options = [
        text for name, value in given.items() if value is not None for text in (name, str(value))
    ]
    commands = [("This report:", shlex.join(["lora-jax", "report", *map(str, folders), *options]))]
    started = (record.environment.get("command") for record in records)
    made = dict.fromkeys(str(command) for command in started if command)
    if made:
        commands.append(("The runs were made with:", "\n".join(made)))
    return commands


def _markdown(page: Page, pictures: Mapping[str, str]) -> str:
    """The report with its pictures, {title: name of the file beside it}."""
    lines = [
        *("# Sweep report", "", page.headline, "", page.state, ""),
        *("## What the data support", ""),
        *_items(page.supported, "Nothing beyond a description of these runs."),
        *("## What they do not support", ""),
        *_items(page.unsupported, "Nothing stands out."),
        *("## What was tuned, and what was held fixed", ""),
        *_items(page.fairness, "Nothing is known of it."),
        *("## Cells", "", *_table(*page.cells, left=len(_LEFT)), page.notes, ""),
    ]
    if page.tasks[1]:
        lines += ["## Over all tasks", "", *_table(*page.tasks), TASKS_NOTE, ""]
    for title, name in pictures.items():
        lines += [f"## {title}", "", f"![{title}]({name})", ""]
        if title == "Where the spread comes from":
            lines += _table(*page.spread)

    headings, tests = page.tests
    if tests:
        cut = f"The first {_MOST_TESTS} of {len(tests)}; all are in tests.csv. "
        note = (cut if len(tests) > _MOST_TESTS else "") + _TESTS_NOTE
        lines += ["## Paired tests", "", *_table(headings, tests[:_MOST_TESTS], left=3), note, ""]
    for heading, runs in (
        ("## Failed runs", page.failed),
        ("## Runs not finished yet", page.waiting),
    ):
        if runs:
            lines += [
                heading,
                "",
                *(f"- {as_code(name)}: {in_markdown(text)}" for name, text in runs),
                "",
            ]
    lines += ["## How to make this again", ""]
    for what, command in page.commands:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
        lines += [what, "", fence, *map(one_line, command.split("\n")), fence, ""]
    return "\n".join(lines)


def _items(sentences: Sequence[str], otherwise: str) -> list[str]:
    return [*(f"- {sentence}" for sentence in sentences), *([] if sentences else [otherwise]), ""]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table, its first columns to the left."""
    escaped = [map(in_markdown, row) for row in rows]
    ruler = f"|{'---|' * left}{'---:|' * (len(headings) - left)}"
    return [
        f"| {' | '.join(headings)} |",
        ruler,
        *(f"| {' | '.join(row)} |" for row in escaped),
        "",
    ]


def _nothing_finished(folders: Sequence[Path], records: Sequence[RunRecord]) -> str:
    statuses = sorted(Counter(record.status for record in records).items())
    counts = ", ".join(f"{number} {status}" for status, number in statuses)
    failed = [record for record in records if record.status == "failed"]
    aside = [record for record in records if record.status == "done" and not record.is_scored]
    counts += f" ({len(aside)} of them to tune by, which no score counts)" if aside else ""
    why = f" The first failure, {failed[0].run_id}: {failed[0].error}." if failed else ""
    return (
        f"A report needs at least one finished run, but {', '.join(map(str, folders))} has "
        f"{counts}.{why} Run the same sweep command again: it continues with what is missing."
    )


def _commit(git: Mapping[str, Any]) -> str | None:
    if not git.get("commit"):
        return None
    return git["commit"][:8] + (" with local changes" if git.get("dirty") else "")


def _distinct(values: Any) -> str:
    return (
        ", ".join(dict.fromkeys(one_line(value) for value in values if value is not None))
        or "unknown"
    )
