"""A report says what was tuned and what was not, and no run of tuning enters a score."""

import csv
import shutil
from dataclasses import replace

import pytest
from made_up_sweep import ENVIRONMENT, fill, grid, result_of, trainer

from lora_jax.config import Config, LoraConfig, OptimConfig, from_config_dict, to_dict
from lora_jax.sweeps.cells import axes, cells_of, gather
from lora_jax.sweeps.fairness import fairness
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.plots import figure
from lora_jax.sweeps.report import write_report
from lora_jax.sweeps.store import RunRecord, RunStore
from lora_jax.sweeps.tuned import Curve, read_curves
from lora_jax.sweeps.tuning import first_round, tune
from lora_jax.sweeps.watch import is_over, look

BEST = {1: 1e-3, 4: 4e-3, 16: 1.0}


def tuned_at(out, factors=(0.5, 1, 2)):
    sweep = {
        "rank": (1, 4, 16), "seeds": (0, 1, 2), "baselines": ("full", "head"), "tune": {"factors": factors, "grow": 1},
        "learning_rate": {"full": 1e-4},
    }  # fmt: skip
    config = from_config_dict({"method": "lora", "sweep": sweep, "out": str(out)})
    best = lambda run: BEST[run.lora.rank] if run.method == "lora" else 1e-4
    diverges = lambda run: run.method == "head" or (run.method, run.optim.learning_rate) == ("full", 2e-4)  # fmt: skip
    return tune(config, trainer(best, diverges), say=lambda text: None)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    tuned_at(out)
    return RunStore(out)


def test_a_cell_is_its_fresh_seeds_at_its_best_value_and_the_setting_is_no_axis(store):
    records, _ = gather([store.root])
    cells = cells_of(records)
    assert [cell.name for cell in cells] == [
        "full", "fp32 r1 all-linear", "fp32 r4 all-linear", "fp32 r16 all-linear",
    ]  # fmt: skip
    assert [cell.curve.best for cell in cells] == [1e-4, 1e-3, 4e-3, 4e-3]
    assert all(list(cell.by_seed()) == [0, 1, 2] for cell in cells)
    assert list(axes(cells[1:])) == ["rank"]
    assert sum(not record.is_scored for record in records) == 5 * 6 + 2 * 2
    scored = [record.result.value("test") for record in records if record.result and record.is_scored]  # fmt: skip
    seen = look(store.root)
    assert seen.best.result.value("test") == max(scored) and is_over(seen)


def test_the_report_has_the_chosen_values_the_curves_and_what_was_fixed(store, tmp_path):
    page = write_report(store.root, tmp_path)
    text = page.read_text()
    for said in (
        "The learning rate was tuned for each setting by itself: of 3 to 4 values",
        "over seeds that are not scored (101, 102)",
        "At an edge of what was tried stands the best of fp32 r4 all-linear: 0.004 (highest tried), "
        "fp32 r16 all-linear: 0.004 (highest tried)",
        "Not scored, as at every value that was tried a run diverged or failed: `head-",
        "scale alpha / rank with alpha 16 (so rank 1 has 16 times the scale of rank 16)",
        "| lora | fp32 | all-linear | 1 | 0.001 |",
        "34 of these to tune by, which no score counts",
        "](tuning.png)",
    ):
        assert said in text
    assert "planned run" not in text and (tmp_path / "tuning.png").stat().st_size > 10_000
    html = page.with_suffix(".html").read_text()
    assert "What was tuned, and what was held fixed" in html and "highest tried" in html
    with (tmp_path / "report.csv").open() as file:
        scored = [row["scored"] for row in csv.DictReader(file)]
    assert scored.count("True") == 12


def test_the_picture_shows_every_value_and_rings_the_chosen_ones(store):
    drawn = figure("tuning", cells_of(gather([store.root])[0]))
    lines = {line.get_label(): line for axis in drawn.axes for line in axis.lines}
    assert list(lines["rank 4"].get_xdata()) == [5e-4, 1e-3, 2e-3, 4e-3]
    rings = [line.get_xdata()[0] for axis in drawn.axes for line in axis.lines if line.get_ms() == 11]  # fmt: skip
    assert sorted(rings) == [1e-4, 1e-3, 4e-3, 4e-3]


def test_of_two_stores_that_tuned_a_cell_to_unlike_values_the_first_one_counts(store, tmp_path):
    """Else a mean were over seeds at two rates."""
    tuned_at(tmp_path, (0.7, 1.4))
    both = cells_of(gather([store.root, tmp_path])[0])
    assert [cell.curve.best for cell in both] == [1e-4, 1e-3, 4e-3, 4e-3]
    assert all(cell.seeds == 3 for cell in both)


def test_a_store_that_is_tuned_again_keeps_what_it_had_aside(store, tmp_path):
    shutil.copytree(store.root, tmp_path / "runs")
    before = {cell: curve.tried for cell, curve in read_curves(tmp_path / "runs").items()}
    tuned_at(tmp_path / "runs", (0.7, 1.4))
    after = read_curves(tmp_path / "runs")
    assert all(set(before[cell]) < set(after[cell].tried) for cell in before)
    assert all(cell.seeds == 3 for cell in cells_of(gather([tmp_path / "runs"])[0]))


def test_a_sweep_that_is_still_tuning_has_no_report_yet_and_says_why(tmp_path):
    def stops(config, runs, **how):
        fill(RunStore(config.out), runs[:2])
        raise KeyboardInterrupt

    sweep = {"tune": {"factors": (0.5, 1)}}
    config = from_config_dict({"sweep": sweep, "out": str(tmp_path)})
    with pytest.raises(KeyboardInterrupt):
        tune(config, stops, say=lambda text: None)
    # Every run that is planned so far has ended, and others follow from them.
    assert look(tmp_path).counts["done"] == look(tmp_path).planned - 2
    trainer(lambda run: 1e-3)(first_round(config))
    assert look(tmp_path).counts["done"] == look(tmp_path).planned and not is_over(look(tmp_path))
    with pytest.raises(ValueError, match="4 of them to tune by, which no score counts"):
        write_report(tmp_path)


def cells(*runs):
    records = [
        RunRecord(run_id(run), None, "done", None, to_dict(run), ENVIRONMENT, result_of(run))
        for run in runs
    ]
    return cells_of(records)


def lora(rank, rate=1e-3, **more):
    return Config(lora=LoraConfig(rank=rank, **more), optim=OptimConfig(learning_rate=rate))


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([lora(1), lora(4)], "One learning rate, 0.001, was used for all settings, and none was"),
        (
            [lora(1), lora(4), replace(lora(1, 1e-5), method="full")],
            "One learning rate was used for all settings of a method (full 1e-05, lora 0.001)",
        ),
        ([lora(1), lora(1, 2e-3)], "The learning rate is a setting that is compared here"),
        ([lora(1), lora(4)], "scale alpha / rank with alpha 16 (so rank 1 has 4 times the scale"),
        ([lora(1, scaling="fixed"), lora(4, scaling="fixed")], "scale alpha with alpha 16, 1 epoch"),
        ([lora(1, alpha=2.0), lora(4, alpha=8.0)], "The same for all: scale alpha / rank, 1 epoch"),
        ([lora(4), lora(4, scaling="rslora")], "The same for all: 1 epoch, 32 examples a step"),
    ],
)  # fmt: skip
def test_without_tuning_a_sentence_says_that_one_rate_was_used(runs, says):
    assert says in "\n".join(fairness(cells(*runs), []))


def test_a_single_setting_is_compared_with_nothing():
    (fixed,) = fairness(cells(lora(1)), [])
    assert fixed.startswith("The same for all: scale alpha / rank with alpha 16, 1 epoch")


def test_a_default_grid_is_told_with_its_rates():
    assert any("One learning rate" in text for text in fairness(cells(*expand(grid())), []))


def test_cells_that_were_not_tuned_beside_those_that_were_are_named():
    both = cells(lora(1), lora(4))
    curve = Curve("optim.learning_rate", (7,), {1e-3: 0.5, 2e-3: 0.6}, (), ())
    tuned = replace(both[0], runs=tuple(replace(run, curve=curve) for run in both[0].runs))
    said = "\n".join(fairness([tuned, both[1]], [curve]))
    assert "It was not tuned for fp32 r4 all-linear." in said
