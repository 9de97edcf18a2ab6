"""What a sweep supports is found where it was put, and nothing is claimed that the seeds do not
show.
"""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lora_jax import config as settings
from lora_jax.sweeps.cells import axes, cells_of, levels
from lora_jax.sweeps.comparisons import (
    against_best,
    between_levels,
    on_examples,
    seed_deviation,
    spread,
)
from lora_jax.sweeps.findings import findings_of
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.store import RunRecord
from lora_jax.training.result import RunResult

RATES = (5e-4, 1e-3)


def cells(
    tmp_path,
    *,
    seeds=5,
    rank=0.01,
    format=0.0,
    noise=0.003,
    ranks=(1, 4, 16),
    formats=("none", "nf4"),
    rates=(1e-3,),
    luck=0.0,
):
    """Cells whose accuracy has these effects: `rank` a level, `format` for nf4, the seed's `luck`
    in all cells, `noise` in each run.
    """
    sweep = settings.SweepConfig(rank=ranks, format=formats, seeds=tuple(range(seeds)))
    records = []
    for run in expand(replace(settings.Config(), sweep=sweep)):
        for rate in rates:
            run = replace(run, optim=replace(run.optim, learning_rate=rate))
            draw = random.Random(run_id(run))
            value = (
                0.75
                + rank * ranks.index(run.lora.rank)
                + format * (run.quant.format == "nf4")
                + luck * run.train.seed
            )
            flat = {
                "test_accuracy": value + draw.gauss(0, noise), "examples": {"test": 1000}, "base_bytes": 1, "adapter_bytes": 1,
            }  # fmt: skip
            records.append(
                RunRecord(
                    run_id(run),
                    tmp_path,
                    "done",
                    config=settings.to_dict(run),
                    result=RunResult.from_json(flat),
                )
            )
    return cells_of(records)


def test_axes_are_the_settings_that_differ(tmp_path):
    found = axes(cells(tmp_path, rates=RATES))
    assert {name: levels(column) for name, column in found.items()} == {
        "rank": [1, 4, 16], "format": ["fp32", "nf4"], "learning rate": [5e-4, 1e-3],
    }  # fmt: skip


def test_an_effect_is_found_where_it_is_and_nowhere_else(tmp_path):
    tests = {
        (one.axis, one.first, one.second): one
        for one in between_levels(cells(tmp_path, rates=RATES))
    }
    assert len(tests) == 3 + 1 + 1
    for pair in (("4", "1"), ("16", "4"), ("16", "1")):
        one = tests["rank", *pair]
        steps = 2 if pair == ("16", "1") else 1
        # Twelve runs of noise 0.003 on each side leave a standard error of 0.0013.
        assert one.test.difference == pytest.approx(0.01 * steps, abs=0.004) and one.adjusted < 0.05
        assert one.matched == 4 and one.wins == 4 and one.test.count == 5
    assert (
        tests["format", "nf4", "fp32"].adjusted > 0.05
        and tests["learning rate", "0.001", "0.0005"].adjusted > 0.05
    )


def test_a_seeds_luck_that_all_cells_share_is_no_difference(tmp_path):
    quiet = {one.first: one.test.difference for one in between_levels(cells(tmp_path))}
    shared = {one.first: one.test.difference for one in between_levels(cells(tmp_path, luck=0.05))}
    assert shared == pytest.approx(quiet)


def test_pure_noise_is_called_a_difference_no_more_often_than_promised(tmp_path):
    alarms = 0
    for trial in range(60):
        found = cells(
            tmp_path,
            rank=0.0,
            noise=0.003,
            seeds=4,
            luck=trial * 1e-9,
            ranks=(1 + trial, 200 + trial, 500 + trial),
        )
        alarms += any(one.adjusted < 0.05 for one in between_levels(found))
    assert alarms <= 9  # 5% of 60 is 3; 9 or more have a probability of 0.3%


def test_the_best_cell_is_corrected_for_having_been_picked(tmp_path):
    chosen = cells(tmp_path, rank=0.0)
    tests = against_best(chosen)
    assert len(tests) == 5 and all(one.test.difference >= 0 for one in tests)
    smallest = min(tests, key=lambda one: one.test.p)
    assert smallest.adjusted == pytest.approx(min(15 * smallest.test.p, 1))
    assert [one.test.difference for one in tests] == sorted(one.test.difference for one in tests)


def test_the_spread_goes_to_the_axis_that_made_it(tmp_path):
    table = spread(cells(tmp_path, rank=0.02, luck=0.004))
    assert table["rank"].share > 0.8 and table["rank"].p < 1e-6
    assert (
        0.01 < table["seed"].share < 0.2
        and table["format"].share < 0.02
        and abs(table.overlap) < 1e-9
    )
    found = cells(tmp_path)
    variances = [np.var(list(cell.by_seed().values()), ddof=1) for cell in found]
    assert len({cell.seeds for cell in found}) == 1  # so that each variance counts alike
    assert seed_deviation(found) == pytest.approx(math.sqrt(np.mean(variances)), rel=1e-9)
    assert seed_deviation(found) == pytest.approx(0.003, rel=0.5)  # what was drawn


def test_with_one_seed_no_comparison_is_supported_and_the_summary_says_so(tmp_path):
    found = findings_of(cells(tmp_path, seeds=1))
    assert found.conclusions.supported == ()
    assert any(
        "No comparison between settings is supported" in text
        for text in found.conclusions.unsupported
    )
    assert all(
        math.isnan(one.test.p) and math.isnan(one.adjusted)
        for one in (*found.against_best, *found.between_levels)
    )
    assert all(math.isnan(source.p) for source in found.spread.sources)


def test_the_summary_names_what_holds_and_what_stays_open(tmp_path):
    found = findings_of(cells(tmp_path), missing=2)
    supported, unsupported = (
        " ".join(found.conclusions.supported),
        " ".join(found.conclusions.unsupported),
    )
    assert "Rank **16** beats 1 by" in supported and "5 seeds" in supported
    assert "Format nf4 against fp32: no difference is shown" in unsupported
    assert (
        "2 planned runs have no result" in unsupported
        and "picked by its score on the test set" in unsupported
    )


def test_settings_without_a_partner_are_left_out_not_guessed(tmp_path):
    whole = cells(tmp_path)
    holed = [cell for cell in whole if (cell.rank, cell.format) != (16, "nf4")]
    one = next(
        one
        for one in between_levels(holed)
        if (one.axis, one.first, one.second) == ("rank", "16", "1")
    )
    assert one.matched == 1
    table = spread(holed)
    assert table.overlap != 0 and table["rank"].share > 0.5


def test_a_single_cell_has_no_comparisons(tmp_path):
    found = findings_of(cells(tmp_path, ranks=(4,), formats=("nf4",)))
    assert found.against_best == () and found.between_levels == () and found.spread is None


def keep_answers(cell, folder, right, ids=None):
    """Writes the answers of the cell's runs as `lora-jax evaluate` does."""
    runs = []
    for run in cell.runs:
        place = folder / run.run_id
        (place / "predictions").mkdir(parents=True)
        rows = [
            {"id": ids[n] if ids else str(n), "loss": 0.5, "units": 1.0, "correct": float(value)}
            for n, value in enumerate(right)
        ]
        (place / "predictions" / "test.jsonl").write_text(
            "\n".join(map(json.dumps, [{"split": "test", "metrics": ["accuracy"]}, *rows]))
        )
        runs.append(replace(run, folder=place))
    return replace(cell, runs=tuple(runs))


def test_answers_that_were_kept_are_compared_example_by_example(tmp_path):
    one, two, three = sorted(
        cells(tmp_path, seeds=1, formats=("none",), noise=0.0), key=lambda cell: -cell.value
    )
    one = keep_answers(one, tmp_path, [True] * 90 + [False] * 10)
    two = keep_answers(two, tmp_path, [True] * 60 + [False] * 40)
    (found,) = on_examples([one, two, three])  # the third kept none
    assert found.other is two and found.examples == 100 and found.difference == pytest.approx(0.3)
    # Thirty examples only the first gets right, none only the second; one of three pairs of cells.
    assert found.p == pytest.approx(2 * 0.5**30) and found.adjusted == pytest.approx(3 * found.p)
    sentences = findings_of([one, two, three]).conclusions
    assert (
        "is right on more test examples than 1 of the 1 others" in sentences.supported[0]
        and "nothing about other seeds" in sentences.supported[0]
    )
    assert any(
        "No comparison between settings is supported" in text for text in sentences.unsupported
    )


def test_answers_to_other_examples_are_not_compared(tmp_path):
    one, two = cells(tmp_path, seeds=1, formats=("none",), ranks=(1, 4), noise=0.0)
    one, two = (
        keep_answers(one, tmp_path, [True] * 9),
        keep_answers(two, tmp_path, [False] * 9, ids=list("abcdefghi")),
    )
    assert on_examples([one, two]) == []


def test_with_several_seeds_an_example_counts_once(tmp_path):
    one, two = sorted(
        cells(tmp_path, seeds=3, formats=("none",), ranks=(1, 4), noise=0.0),
        key=lambda cell: -cell.value,
    )
    first, second = [True] * 15 + [False] * 5, [True] * 10 + [False] * 10
    (found,) = on_examples(
        [keep_answers(one, tmp_path, first), keep_answers(two, tmp_path, second)]
    )
    assert found.seeds == 3 and found.examples == 20
    assert found.p == pytest.approx(
        stats.ttest_rel(np.array(first, float), np.array(second, float)).pvalue
    )


def test_where_answers_were_kept_differences_are_over_seeds_and_examples(tmp_path):
    """Each seed has other examples right: 15 or 16 of 20 against 10."""
    one, two = sorted(
        cells(tmp_path, seeds=3, formats=("none",), ranks=(1, 4), noise=0.0),
        key=lambda cell: -cell.value,
    )
    plain = between_levels([one, two])[0]
    (kept,) = [
        keep_answers(one, tmp_path, [True] * 15 + [False] * 5),
    ]
    other = keep_answers(two, tmp_path, [True] * 10 + [False] * 10)
    # Answers to a part of the examples that the score is of do not stand in for it.
    assert between_levels([kept, other])[0].crossed is None and plain.crossed is None

    def of_20(cell):
        runs = [
            replace(run, result=replace(run.result, examples={"test": 20})) for run in cell.runs
        ]
        return replace(cell, runs=tuple(runs))

    (found,) = between_levels([of_20(kept), of_20(other)])
    # Five examples of 20 make a difference of a quarter: rank 4 is better.
    assert found.crossed.value == pytest.approx(0.25) and found.crossed.examples == 20
    assert found.p == found.crossed.p and found.limits == found.crossed.interval()[1:]
    assert (found.crossed.seeds, found.crossed.seed_error) == (3, pytest.approx(0.0))
    assert against_best([of_20(kept), of_20(other)])[0].crossed == found.crossed


def test_a_setting_of_many_values_is_looked_at_as_a_line_and_the_report_says_so(tmp_path):
    rates = [1e-4 * 1.2**n for n in range(20)]
    found = findings_of(cells(tmp_path, seeds=2, ranks=(1, 4), formats=("nf4",), rates=rates))
    assert found.spread.trends == ("learning rate",) and found.spread["learning rate"].freedom == 1
    assert any(
        "Of learning rate only a straight line is looked at" in text
        for text in found.conclusions.unsupported
    )


def test_baselines_are_compared_with_the_mean_of_all_adapters(tmp_path):
    first, second, *grid = cells(tmp_path)
    head, full = (
        replace(cell, method=method, rank=None, targets=None)
        for cell, method in ((first, "head"), (second, "full"))
    )
    found = findings_of([head, full, *grid])
    below, beside = found.by_metric.against_baselines
    means = [np.mean([cell.by_seed()[seed] for cell in grid]) for seed in range(5)]
    right = stats.ttest_rel(means, list(head.by_seed().values()))
    assert (below.first, below.second, below.matched) == ("mean of 4 adapters", "head", 4)
    assert below.test.difference == pytest.approx(np.mean(means) - head.value)
    assert below.p == pytest.approx(right.pvalue) and below.wins == 4
    assert below.adjusted == pytest.approx(2 * min(below.p, beside.p), rel=1e-9)
    (said,) = [text for text in found.conclusions.supported if "**head**" in text]
    assert said.startswith("The mean of 4 adapters is ") and "points of test accuracy above" in said
    # Nothing is said against a baseline that is as good as they are.
    alike = replace(grid[0], method="head", rank=None, targets=None)
    same = findings_of([alike, grid[0]])
    assert same.by_metric.against_baselines[0].adjusted == 1.0
    assert any(
        "Baseline mean of 1 adapter against head" in one for one in same.conclusions.unsupported
    )
