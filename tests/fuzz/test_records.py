"""A record of a run that says something odd, wherever it does: the run is sound or a failed one with
a reason, and lists, watches, exports and reports of all runs go on.

`--fuzz N` makes N changes in place of some.
"""

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_sweep import fill, grid
from rich.console import Console

from lora_jax.sweeps import export_runs, plots, report, watch
from lora_jax.sweeps.cells import cells_of, gather
from lora_jax.sweeps.findings import findings_of
from lora_jax.sweeps.grid import expand
from lora_jax.sweeps.store import RunStore

ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 0.5, 10**400, -(10**30), 1e308, -1e308, float("nan"), float("inf"), "", "x", "4", "\ud800",
    "<b>$_{[/]`|", [], {}, [[]], [None], {"a": 1}, {"": {}},
)  # fmt: skip
TEXTS = ("", "{", "null", "[]", "5", '"x"', "{}\n{}", '{"a":' * 50_000, "[" * 50_000, "\0", "\x85")
FILES = ("config.json", "environment.json", "status.json", "result.json", "metrics.jsonl")
ABOVE = ("index.jsonl", "plan.json")


def changed(value: Any, draw: random.Random) -> Any:
    """The value with one change somewhere in it."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.9:
        places = list(value) if isinstance(value, dict) else range(len(value))
        place, copy = draw.choice(list(places)), value.copy()
        if draw.random() < 0.15:
            del copy[place]
        else:
            copy[place] = changed(value[place], draw)
        return copy
    return draw.choice(ODD)


def changed_text(text: str, lines: bool, draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.1:
        return draw.choice(TEXTS)
    if kind < 0.15:
        return text[: draw.randrange(len(text))]
    if not lines:
        return json.dumps(changed(json.loads(text), draw))
    rows = text.splitlines()
    place = draw.randrange(len(rows))
    if draw.random() < 0.2:
        rows[place] = draw.choice(TEXTS)
    else:
        rows[place] = json.dumps(changed(json.loads(rows[place]), draw))
    return "\n".join(rows) + "\n"


def everything(root: Path, odd: str | None, out: Path, made: dict[str, Any]) -> None:
    """All that reads a store; `odd` is the run that may have failed, None where none may. What equal
    cells, with equal rows, give is `made` once.
    """
    records = RunStore(root).runs()
    assert len(records) == 6
    for record in records:
        if record.run_id == odd:
            assert record.status != "failed" or record.error
        else:
            assert record.status == "done", record.error
    screen = Console(file=io.StringIO(), width=200)
    screen.print(watch.frame(watch.look(root)))
    export_runs(root, out / "runs.csv")

    records, pending = gather([root])
    cells = cells_of(records)
    known = str(cells)
    found = made[known] = made.get(known) or findings_of(cells)
    screen.print(report.summary_table(cells))
    page = report._page(cells, found, records, pending, ())
    text = report._markdown(page, {}) + report.html_page(page, {})
    text.encode()
    (bad,) = [run for run in records if run.folder.name == odd] or [None]
    assert bad is None or bad.status != "failed" or bad.run_id in text
    rows = [
        (run.folder / "metrics.jsonl").read_text(errors="replace")
        for cell in cells
        for run in cell.runs
    ]
    for name in ("learning_curves", "pareto", "pareto_time"):
        known = f"{name} {cells} {rows if name == 'learning_curves' else ''}"
        if known not in made:
            plots.figure(name, cells, found)
            made[known] = True


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A store of six finished runs of several cells and two seeds."""
    root = tmp_path_factory.mktemp("runs")
    runs = expand(grid())
    again = replace(runs[3], train=replace(runs[3].train, seed=1))
    store = RunStore(root)
    fill(store, [*runs[1:6], again])
    store.write_plan([folder.folder.name for folder in store.runs()])
    return root


@pytest.mark.slow
def test_an_odd_record_is_a_failed_run_and_the_others_are_reported(root, tmp_path, pytestconfig):
    folders = [record.folder for record in RunStore(root).runs()]
    index = (root / "index.jsonl").read_text()
    problems, made = [], {}
    for seed in range(pytestconfig.getoption("--fuzz") or 100):
        draw = random.Random(seed)
        folder = draw.choice(folders)
        above = draw.random() < 0.1
        path = root / draw.choice(ABOVE) if above else folder / draw.choice(FILES)
        before = path.read_text()
        text = changed_text(before, path.suffix == ".jsonl", draw)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        if draw.random() < 0.5 and not above:
            (root / "index.jsonl").unlink()
        try:
            everything(root, None if above else folder.name, tmp_path, made)
        except Exception as error:
            where = f"{path.name}: {text[:3000] if len(text) < 3000 else len(text)}"
            problems.append(f"seed {seed}: {type(error).__name__}: {str(error)[:300]} in {where}")
        finally:
            path.write_text(before)
            (root / "index.jsonl").write_text(index)
    assert not problems, f"{len(problems)}: " + "\n\n".join(problems[:6])
