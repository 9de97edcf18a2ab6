"""The report says what the runs say, and a stranger can regenerate it."""

import csv
import io
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from made_up_sweep import ENVIRONMENT, fill, grid, result_of
from rich.console import Console

from lora_jax import config as settings
from lora_jax.sweeps import report
from lora_jax.sweeps.cells import axes as axes_of
from lora_jax.sweeps.cells import cells_of, front, gather, pareto
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.settings import settings_of
from lora_jax.sweeps.store import RunStore


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunStore:
    store = RunStore(tmp_path_factory.mktemp("runs"))
    fill(store, expand(grid()))
    return store


@pytest.fixture(scope="module")
def written(finished) -> str:
    return report.write_report(finished.root).read_text()


def test_every_cell_of_the_grid_is_a_row_with_its_numbers(finished, written):
    cells = cells_of(gather([finished.root])[0])
    assert len(cells) == 20
    with (finished.root / "report" / "cells.csv").open() as file:
        rows = {row["cell"]: row for row in csv.DictReader(file)}
    for cell in cells:
        assert float(rows[cell.name]["test_accuracy"]) == pytest.approx(cell.value)
        assert f"{100 * cell.value:.1f} ± {100 * cell.standard_error:.1f} (b)" in written
    # Of 18 adapters 12 are of less than the largest rank.
    assert "the peak of 12 of 20 cells is that program's, with adapters up to 2.40 MB" in written
    with (finished.root / "report" / "report.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 20
    with (finished.root / "report" / "settings.csv").open() as file:
        settings = {row.pop("cell"): row for row in csv.DictReader(file)}
    for cell in cells:
        own = settings_of(cell.runs[0])[1]
        assert {key: str(own.get(key, "–")) for key in settings[cell.name]} == {
            key: value or "None" for key, value in settings[cell.name].items()
        }
    assert list(settings[cells[0].name])[0] != "model.name"  # What differs comes first.


@pytest.mark.parametrize("picture", ["rank_curve.png", "pareto.png", "learning_curves.png"])
def test_pictures_are_written_and_shown(finished, written, picture):
    assert (finished.root / "report" / picture).read_bytes()[:4] == b"\x89PNG"
    assert f"]({picture})" in written


def test_one_seed_gives_the_binomial_error_and_several_give_that_of_the_mean(tmp_path, finished):
    (single, *_) = cells_of(gather([finished.root])[0])
    p = single.value
    assert single.standard_error == pytest.approx(math.sqrt(p * (1 - p) / 1066))
    store = RunStore(tmp_path)
    fill(
        store,
        expand(
            replace(
                grid((0, 1, 2)), sweep=replace(grid((0, 1, 2)).sweep, format=("nf4",), rank=(4,))
            )
        ),
    )
    cell = cells_of(gather([tmp_path])[0])[-1]
    values = [run.result.value("test") for run in cell.runs]
    mean = sum(values) / 3
    assert cell.seeds == 3 and cell.value == pytest.approx(mean)
    assert cell.standard_error == pytest.approx(
        math.sqrt(sum((value - mean) ** 2 for value in values) / 2 / 3)
    )
    text = report.write_report(tmp_path).read_text()
    assert "over seeds" in text
    # The middle of three seeds, as LoRA's paper has GLUE.
    assert cell.median == sorted(values)[1] and f"| {100 * cell.median:.1f} | 3 |" in text


def test_headline_names_the_best_adapter_and_the_smallest_within_one_standard_error(finished):
    cells = cells_of(gather([finished.root])[0])
    adapters = [cell for cell in cells if cell.rank]
    best = max(adapters, key=lambda cell: cell.value)
    close = [cell for cell in adapters if cell.value >= best.value - best.standard_error]
    cheapest = min(close, key=lambda cell: cell.stored_bytes)
    text = report.headline(cells)
    assert f"**{best.name}**" in text and f"**{cheapest.name}**" in text and "head 6" in text


def test_no_cell_beats_one_of_the_pareto_front(finished):
    cells = cells_of(gather([finished.root])[0])
    front = pareto(cells)
    for cell in cells:
        assert not any(cell.stored_bytes <= f.stored_bytes and cell.value > f.value for f in front)
        assert any(f.stored_bytes <= cell.stored_bytes and f.value >= cell.value for f in front)


def test_of_equal_costs_the_best_alone_is_on_the_front():
    """And of equal scores the cheapest, whatever their order."""
    at = lambda cost, merit: SimpleNamespace(cost=cost, merit=merit)
    cells = [at(2, 0.7), at(1, 0.5), at(2, 0.9), at(1, 0.6), at(3, 0.9), at(None, 1.0)]
    for order in (cells, cells[::-1]):
        found = front(order, lambda cell: cell.cost)
        assert [(cell.cost, cell.merit) for cell in found] == [(1, 0.6), (2, 0.9)]


def test_cells_that_differ_in_a_learning_rate_are_not_averaged_and_say_so(tmp_path):
    store = RunStore(tmp_path)
    run = settings.Config()
    fill(store, [run, replace(run, optim=replace(run.optim, learning_rate=5e-4))])
    names = {cell.name for cell in cells_of(gather([tmp_path])[0])}
    assert names == {
        "fp32 r8 all-linear learning_rate=0.001",
        "fp32 r8 all-linear learning_rate=0.0005",
    }
    assert report.write_report([tmp_path], tmp_path / "elsewhere").parent.name == "elsewhere"


def test_failed_unfinished_and_planned_runs_are_listed(tmp_path):
    store = RunStore(tmp_path)
    done, broken, running, later = (
        replace(settings.Config(), lora=settings.LoraConfig(rank=r)) for r in (1, 2, 4, 8)
    )
    store.write_plan([run_id(run) for run in (done, broken, running, later)])
    fill(store, [done], lambda run: replace(result_of(run), note="7 rows left out: a|b."))
    store.start(run_id(broken), broken, ENVIRONMENT)
    store.fail(run_id(broken), ValueError("loss is NaN at step 7"))
    store.start(run_id(running), running, ENVIRONMENT)
    text = report.write_report(tmp_path).read_text()
    assert f"`{run_id(broken)}`: ValueError: loss is NaN at step 7" in text
    assert f"`{run_id(running)}`: running" in text and f"`{run_id(later)}`: pending" in text
    assert "lora-jax report" in text and ENVIRONMENT["command"] in text
    assert r"Of the data: 7 rows left out: a\|b." in text


def test_several_stores_are_one_report_and_a_run_in_both_counts_once(tmp_path, finished):
    other = RunStore(tmp_path)
    runs = expand(grid())
    fill(other, [*runs[:2], replace(runs[2], lora=replace(runs[2].lora, rank=8))])
    records, _ = gather([finished.root, tmp_path])
    assert len(records) == 21


def test_one_id_with_other_settings_in_two_stores_is_told_and_the_rest_goes_on(tmp_path, finished):
    other, run = RunStore(tmp_path), expand(grid())[0]
    other.start(run_id(run), replace(run, train=replace(run.train, batch_size=8)), ENVIRONMENT)
    other.finish(run_id(run), result_of(run))
    records, _ = gather([finished.root, tmp_path])
    told = [record for record in records if record.status == "failed"]
    assert (
        len(records) == 21
        and len(told) == 1
        and "other settings: this one is left out" in told[0].error
    )
    text = report.write_report([finished.root, tmp_path], tmp_path / "report").read_text()
    assert "other settings: this one is left out" in text


def test_a_folder_without_runs_and_one_without_results_say_what_is_there(tmp_path):
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(ValueError, match="holds none. In it: holiday.jpg"):
        report.write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        report.write_report(tmp_path / "absent")
    store = RunStore(tmp_path)
    store.start("full-s0", settings.Config(), {})
    store.fail("full-s0", MemoryError("too big"))
    with pytest.raises(
        ValueError, match="1 failed. The first failure, full-s0: MemoryError: too big"
    ):
        report.write_report(tmp_path)


def test_terminal_table_has_a_row_a_cell(finished):
    cells = cells_of(gather([finished.root])[0])
    table = report.summary_table(cells)
    assert table.row_count == 20
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    assert "all-linear" in console.export_text()


def test_targets_have_one_name_whichever_run_gave_it(tmp_path):
    store = RunStore(tmp_path)
    for seed, targets in enumerate(("a/q/kernel", "query=a/q/kernel")):
        sweep = settings.SweepConfig(targets=(targets, "mlp"), seeds=(seed,))
        fill(store, expand(replace(settings.Config(), sweep=sweep)))
    cells = cells_of(gather([tmp_path])[0])
    assert [(cell.targets, cell.seeds) for cell in cells] == [("mlp", 2), ("query", 2)]
    with (report.write_report(tmp_path, tmp_path / "page").parent / "report.csv").open() as file:
        assert {row["targets"] for row in csv.DictReader(file)} == {"query", "mlp"}


def test_quantised_weights_are_an_axis_by_name_beside_adapted_ones(tmp_path):
    store = RunStore(tmp_path)
    for seed, targets in enumerate(("a/q/kernel", "query=a/q/kernel")):
        axes = (f"quant.targets = {targets}, mlp",)
        both = ("mlp", "attention")
        sweep = settings.SweepConfig(targets=both, format=("nf4",), axes=axes, seeds=(seed,))
        fill(store, expand(replace(settings.Config(), sweep=sweep)))
    cells = cells_of(gather([tmp_path])[0])
    assert {(cell.targets, cell.variant, cell.seeds) for cell in cells} == {
        (adapted, f"quant.targets={stored}", 2)
        for adapted in ("mlp", "attention")
        for stored in ("mlp", "query")
    }
    found = {name: set(column) for name, column in axes_of(cells).items()}
    assert found == {"targets": {"mlp", "attention"}, "quantised targets": {"mlp", "query"}}
    # Another set of that name: both stand as their regexes.
    stored = {"format": "nf4", "targets": "query=b/q/kernel"}
    config = settings.from_config_dict({"method": "qlora", "quant": stored})
    fill(RunStore(tmp_path / "other"), [config])
    names = {cell.variant for cell in cells_of(gather([tmp_path, tmp_path / "other"])[0])}
    assert names == {f"quant.targets={said}" for said in ("mlp", "a/q/kernel", "b/q/kernel")}
