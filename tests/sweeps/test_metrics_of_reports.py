"""A report is of the metric that its runs name, in its direction and unit: STS-B, CoLA, a language
model by its loss, and one by what it writes.
"""

import csv
import functools
import math
import re
from dataclasses import replace

import pytest
from made_up_sweep import fill, grid, result_by

from lora_jax.sweeps import watch
from lora_jax.sweeps.cells import cells_of, front, gather
from lora_jax.sweeps.export import run_rows
from lora_jax.sweeps.findings import findings_of
from lora_jax.sweeps.grid import expand
from lora_jax.sweeps.report import headline, write_report
from lora_jax.sweeps.store import RunStore

# metric: (words in a heading, other scores that the run has, does lower win)
METRICS = {
    "pearson": ("test Pearson correlation", ("spearman", "loss", "accuracy"), False),
    "matthews": ("test Matthews correlation", ("loss", "accuracy"), False),
    "loss": ("test loss (nats a token)", ("accuracy",), True),
    "rouge_l": ("test ROUGE-L", ("loss", "accuracy"), False),
}


@pytest.fixture(scope="module", params=METRICS)
def reported(request, tmp_path_factory):
    """(metric, store with three seeds, its report)."""
    store = RunStore(tmp_path_factory.mktemp(request.param))
    three = replace(grid((0, 1, 2)), sweep=replace(grid((0, 1, 2)).sweep, format=("none", "nf4")))
    fill(store, expand(three), functools.partial(result_by, primary=request.param))
    return request.param, store, write_report(store.root).read_text()


def cells(store):
    return cells_of(gather([store.root])[0])


def test_the_best_cell_is_chosen_on_validation_and_its_test_score_stands_there(reported):
    """These metrics are not computed on validation data, where the loss is."""
    metric, store, text = reported
    words = METRICS[metric][0]
    found = [cell for cell in cells(store) if cell.rank]
    mean = lambda cell, split, name: sum(run.result.value(split, name) for run in cell.runs) / 3
    best = min(found, key=lambda cell: mean(cell, "validation", "loss"))
    said = headline(cells(store))
    label = best.runs[0].result.score("validation", "loss").label
    assert said.startswith(f"**{best.name}** has the lowest validation {label}; its {words} is ")
    assert f"{mean(best, 'test', metric):.3f} ± {best.standard_error:.3f}" in said and said in text
    assert f"| {words} |" in text


def test_nothing_is_in_percent_or_points_and_nobody_speaks_of_accuracy(reported):
    _, store, text = reported
    # Shares of the spread and the level of intervals are percentages of another kind.
    rest = re.sub(r"Of the spread between runs.*|\| .* \||95% interval", "", text)
    assert " points" not in text and "binomial" not in text and not re.search(r"\d ?%", rest)
    assert "ccuracy" not in re.sub(r"\(.*?\)", "", text)


def test_what_wins_wins_in_the_direction_of_the_metric(reported):
    metric, store, _ = reported
    lower = METRICS[metric][2]
    found = findings_of(cells(store))
    (one,) = [
        one for one in found.between_levels if one.axis == "targets" and one.first == "query+value"
    ]
    # All linear layers are made to be 0.02 better, with a noise of 0.004 a run.
    assert (one.test.difference > 0) == lower and one.wins == 0 and one.adjusted < 0.05
    assert any(
        "Targets **all-linear** beats query+value" in text for text in found.conclusions.supported
    )
    assert all((one.test.difference <= 0) == lower for one in found.against_best)


def test_a_front_gets_better_as_it_gets_dearer(reported):
    metric, store, _ = reported
    values = [cell.value for cell in front(cells(store), lambda cell: cell.stored_bytes)]
    assert len(values) > 1 and values == sorted(values, reverse=METRICS[metric][2])


def test_every_score_is_kept_in_the_tables(reported):
    metric, store, _ = reported
    with (store.root / "report" / "report.csv").open() as file:
        rows = {row["run_id"]: row for row in csv.DictReader(file)}
    with (store.root / "report" / "cells.csv").open() as file:
        (first, *_) = csv.DictReader(file)
    assert first["metric"] == metric and first["standard_error_kind"] == "seeds"
    assert float(first["value"]) == float(first[f"test_{metric}"])
    for record, exported in zip(store.runs(), run_rows(store.runs()), strict=True):
        for name in (metric, *METRICS[metric][1]):
            value = record.result.value("test", name)
            assert float(rows[record.run_id][f"test_{name}"]) == value
            assert exported[f"result.test_{name}"] == value and first[f"test_{name}"]
        assert exported["result.primary"] == metric == rows[record.run_id]["primary"]


def test_the_live_view_knows_the_best_run(reported):
    metric, store, _ = reported
    records = store.runs()
    best = (min if METRICS[metric][2] else max)(records, key=lambda run: run.result.value("test"))
    assert watch.look(store.root).best.run_id == best.run_id


@pytest.mark.parametrize("metric", METRICS)
def test_one_seed_has_no_error_and_none_is_made_up(tmp_path, metric):
    store = RunStore(tmp_path)
    fill(store, expand(grid()), functools.partial(result_by, primary=metric))
    text = write_report(tmp_path).read_text()
    assert all(cell.error_kind == "unknown" for cell in cells(store))
    assert all(math.isnan(cell.standard_error) for cell in cells(store))
    assert "±" not in headline(cells(store)) and "nan" not in text
    assert "no ±: one seed, and this score has no error of its own" in text
    assert "binomial" not in text and "Wilson" not in text
    with (tmp_path / "report" / "cells.csv").open() as file:
        assert {row["standard_error"] for row in csv.DictReader(file)} == {""}


def test_runs_of_another_metric_are_named_and_not_averaged(tmp_path):
    store, runs = RunStore(tmp_path), expand(grid())
    fill(store, runs[:6])
    fill(store, runs[6:8], functools.partial(result_by, primary="matthews"))
    text = write_report(tmp_path).read_text()
    assert (
        text.count("to be judged by its test Matthews correlation, most runs here by another") == 2
    )
    assert len(cells(store)) == 6


def test_a_score_that_is_no_number_is_a_failed_run(tmp_path):
    store, runs = RunStore(tmp_path), expand(grid())
    nan = result_by(runs[3], "pearson")
    broken = replace(nan.score("test"), value=math.nan)
    nan = replace(nan, scores={"test": nan.scores["test"] | {"pearson": broken}})
    fill(store, runs[:3], functools.partial(result_by, primary="pearson"))
    fill(store, runs[3:4], lambda run: nan)
    text = write_report(tmp_path).read_text()
    assert "its test Pearson correlation is no number: this one is left out" in text
    assert watch.look(tmp_path).best is not None
