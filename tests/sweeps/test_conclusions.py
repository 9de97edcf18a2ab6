"""What counts as supported: the thresholds of the sentences, at their edges."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_sweep import result_by, result_of

from lora_jax.config import Config, LoraConfig, ReportConfig, TrainConfig, to_dict
from lora_jax.statistics.paired import PairedTest, detectable_difference
from lora_jax.sweeps.cells import cells_of
from lora_jax.sweeps.comparisons import Comparison, choice, paired_deviation, ranked
from lora_jax.sweeps.conclusions import conclude
from lora_jax.sweeps.findings import findings_of, margin_of
from lora_jax.sweeps.grid import run_id
from lora_jax.sweeps.store import RunRecord
from lora_jax.training.result import RunResult


def cells(seeds=2, ranks=(1, 4, 16), primary=None):
    found = []
    for rank in ranks:
        for seed in range(seeds):
            run = replace(Config(), lora=LoraConfig(rank=rank), train=TrainConfig(seed=seed))
            result = result_of(run) if primary is None else result_by(run, primary)
            folder = Path(run_id(run))
            found.append(RunRecord(folder.name, folder, "done", config=to_dict(run), result=result))
    return cells_of(found)


def pair(adjusted, difference=0.02, axis="rank", first="4", second="1", wins=3):
    low, high = sorted((difference / 2, difference * 2))
    test = PairedTest(count=2, difference=difference, low=low, high=high, p=0.01, p_signs=0.5)
    return Comparison(axis, first, second, test, 4, wins, adjusted)


def said(given=(), contrasts=(), tests=(), missing=0):
    found = conclude(given or cells(), tests, contrasts, None, missing)
    return "\n".join(found.supported), "\n".join(found.unsupported)


@pytest.mark.parametrize(
    ("adjusted", "words"),
    [(0.0499, "p = 0.05"), (0.012, "p = 0.01"), (1e-4, "p = 0.0001"), (9e-5, "p < 0.0001")],
)
def test_below_one_in_twenty_a_difference_is_supported(adjusted, words):
    supported, open_ones = said(contrasts=[pair(adjusted)])
    assert "Rank **4** beats 1 by 2.00 points (95% interval 1.00 to 4.00; " + words in supported
    assert "on average over 4 matched settings, 3 of which agree, and 2 seeds" in supported
    assert "no difference is shown" not in open_ones


@pytest.mark.parametrize("adjusted", [0.05, 0.3, math.nan])
def test_from_one_in_twenty_on_it_is_not(adjusted):
    supported, open_ones = said(contrasts=[pair(adjusted)])
    assert "beats" not in supported
    assert "Rank 4 against 1: no difference is shown (95% interval +1.00 to +4.00" in open_ones
    assert "points): by itself it would be, and not among all that are looked at." in open_ones


def test_the_worse_level_is_never_the_one_that_beats():
    supported, _ = said(contrasts=[pair(0.01, difference=-0.02, wins=1)])
    assert "Rank **1** beats 4 by 2.00 points" in supported and "3 of which agree" in supported
    # A loss is better where it is lower: `wins` counts for the first level all the same.
    losses = cells(primary="loss")
    supported, _ = said(losses, contrasts=[pair(0.01, difference=-0.02, wins=3)])
    assert "Rank **4** beats 1 by 0.0200 (" in supported and "3 of which agree" in supported


def test_the_best_cell_beats_those_alone_that_are_below_the_level():
    given = cells()
    best, *others = sorted(given, key=lambda cell: -cell.merit)
    tests = [
        pair(adjusted, axis="best cell", first=best.name, second=other.name)
        for adjusted, other in zip((0.05, 0.049), others, strict=True)
    ]
    supported, open_ones = said(given, tests=tests)
    assert f"**{best.name}**" in supported and "beats 1 of the 2 others" in supported
    assert f"That **{best.name}** is better than {others[0].name} is not shown" in open_ones


@pytest.mark.parametrize("seeds", [1, 2, 4, 5])
def test_what_so_many_seeds_can_tell(seeds):
    supported, open_ones = said(cells(seeds), contrasts=[pair(0.001)])
    assert (
        ("there is one seed a setting" in open_ones) == (seeds == 1) == ("beats" not in supported)
    )
    assert ("must differ by about" in open_ones) == (seeds > 1)
    if seeds > 1:
        # Of a difference of two settings, not of the scores of one.
        least = detectable_difference(paired_deviation(cells(seeds)), seeds)
        assert f"must differ by about {100 * least:.1f} points" in open_ones
    assert ("With fewer than five seeds" in open_ones) == (1 < seeds < 5)


def test_six_undecided_pairs_are_named_and_missing_runs_are_counted():
    _, open_ones = said(contrasts=[pair(0.5, first=str(n)) for n in range(6)], missing=1)
    assert open_ones.count("no difference is shown") == 6 and "more pairs" not in open_ones
    assert "1 planned run has no result" in open_ones
    _, open_ones = said(contrasts=[pair(0.5, first=str(n)) for n in range(8)], missing=2)
    assert open_ones.count("no difference is shown") == 6
    assert "2 more pairs of levels differ" in open_ones
    assert "2 planned runs have no result" in open_ones


def scored(accuracy, validation=None, loss=None, *, ranks=(4, 16), run=None):
    """Cells of these ranks with accuracies (a list of seeds for each rank) and what else is given."""
    records = []
    for place, rank in enumerate(ranks):
        for seed, value in enumerate(accuracy[place]):
            config = replace(
                run or Config(), lora=LoraConfig(rank=rank), train=TrainConfig(seed=seed)
            )
            flat = {"test_accuracy": value, "examples": {"test": 1000}}
            if validation is not None:
                flat["validation_accuracy"] = validation[place][seed]
            if loss is not None:
                flat["test_loss"] = loss[place][seed]
            folder = Path(run_id(config))
            result = RunResult.from_json(flat)
            records.append(
                RunRecord(folder.name, folder, "done", config=to_dict(config), result=result)
            )
    return cells_of(records)


def test_the_best_is_chosen_on_validation_and_the_report_says_on_what():
    """Rank 4 is better on the test set and rank 16 on validation data."""
    test, validation = [[0.9, 0.9], [0.8, 0.8]], [[0.7, 0.7], [0.8, 0.8]]
    found = scored(test, validation)
    assert [cell.rank for cell in ranked(found)] == [16, 4]
    assert choice(found).words == "the highest validation accuracy"
    assert not any(
        "picked by its score on the test" in text
        for text in findings_of(found).conclusions.unsupported
    )
    (without,) = [scored(test)]
    assert [cell.rank for cell in ranked(without)] == [4, 16] and choice(without).split == "test"
    assert any(
        "picked by its score on the test" in text
        for text in findings_of(without).conclusions.unsupported
    )


def test_the_loss_is_tested_too_and_said_where_it_alone_tells():
    draw = np.random.default_rng(0)
    near = [list(0.8 + draw.normal(0, 0.01, 5)) for _ in range(2)]
    loss = [[0.50, 0.51, 0.52, 0.50, 0.51], [0.40, 0.41, 0.415, 0.40, 0.41]]
    found = findings_of(scored(near, loss=loss))
    assert found.between_levels[0].adjusted > 0.05
    (text,) = [text for text in found.conclusions.supported if "beats" in text]
    assert text.startswith("By test loss: Rank **16** beats 4 by 0.10")
    both = findings_of(scored([[0.7 + n / 1000 for n in (0, 2, 1, 0, 3)], [0.9] * 5], loss=loss))
    assert "By test loss, too (p" in both.conclusions.supported[0]
    worse = findings_of(scored([[0.9] * 5, [0.7 + n / 1000 for n in (0, 2, 1, 0, 3)]], loss=loss))
    assert "By test loss it is the other way round" in worse.conclusions.supported[0]


def test_levels_within_the_margin_are_alike_as_far_as_all_pairs_are():
    """Ranks 4 to 64 lie within 0.2 points, rank 1 5 points below; the margin is 1 point."""
    draw = np.random.default_rng(1)
    means = (0.75, 0.80, 0.802, 0.801)
    found = scored([list(m + draw.normal(0, 0.001, 4)) for m in means], ranks=(1, 4, 16, 64))
    (text,) = findings_of(found).conclusions.alike
    assert text.startswith(
        "Rank **4** to **64**: no difference larger than 1.00 points (the farthest differ by 0."
    )
    assert not findings_of(found, margin=0.0005).conclusions.alike
    assert "larger than 6.00 points" in findings_of(found, margin=0.06).conclusions.alike[0]
    assert "Rank **1** to **64**" in findings_of(found, margin=0.06).conclusions.alike[0]


def test_the_margin_is_given_configured_a_point_or_a_tenth_of_the_gain_over_the_head():
    found = scored([[0.8, 0.8], [0.8, 0.8]])
    assert margin_of(found) == 0.01 and margin_of(found, 0.03) == 0.03
    run = replace(Config(), report=ReportConfig(margin=0.02))
    assert margin_of(scored([[0.8], [0.8]], run=run)) == 0.02
    losses = cells(primary="loss")
    assert margin_of(losses) is None
    head = cells_of(
        [replace(losses[0].runs[0], config=losses[0].runs[0].config | {"method": "head"})]
    )
    gain = abs(ranked(losses)[0].value - head[0].value)
    assert margin_of([*losses, *head]) == pytest.approx(gain / 10)


def test_so_many_seeds_would_tell_the_two_best_apart():
    """The difference of the seeds is 1 point on the mean, with a deviation of 2: d = 0.5, 34 pairs."""
    found = scored([[0.81, 0.83, 0.79], [0.80, 0.80, 0.80]])
    (text,) = [t for t in findings_of(found).conclusions.unsupported if "two best" in t]
    assert "would take about 34 seeds, if they differ by 1.00 points" in text


def test_what_no_number_of_seeds_would_show_is_said():
    perfect = findings_of(scored([[1.0, 1.0], [1.0, 1.0]])).conclusions
    assert any(
        "Every run reaches a test accuracy of 100.0%" in text for text in perfect.unsupported
    )
    same = [[0.8, 0.82], [0.8, 0.82], [0.9, 0.91]]
    twins = findings_of(scored(same, loss=same, ranks=(1, 4, 16))).conclusions
    (text,) = [text for text in twins.unsupported if "one setting under several names" in text]
    assert "fp32 r1 all-linear, fp32 r4 all-linear gave equal losses" in text
    assert any("has the largest rank that was tried, 16" in text for text in twins.unsupported)
    middle = findings_of(scored([[0.8], [0.9], [0.7]], ranks=(1, 4, 16))).conclusions
    assert not any("that was tried" in text for text in middle.unsupported)


def test_a_slope_is_said_a_doubling():
    draw = np.random.default_rng(2)
    values = [list(0.7 + 0.01 * n + draw.normal(0, 0.001, 3)) for n in (0, 2, 4)]
    found = findings_of(scored(values, ranks=(1, 4, 16)))
    (slope,) = found.by_metric.along_axes
    assert slope.test.difference == pytest.approx(0.01, abs=0.001)
    (text,) = [text for text in found.conclusions.supported if "doubling" in text]
    assert text.startswith("With each doubling of rank, test accuracy rises by 1.0")


def test_the_deviation_over_seeds_is_told_for_each_data_set():
    runs = [run for cell in cells(seeds=3) for run in cell.runs]
    elsewhere = [
        replace(run, config={**run.config, "data": {**run.config["data"], "name": "other.csv"}})
        for run in runs
    ]
    _, open_ones = said(given=cells_of(runs + elsewhere))
    told = [line for line in open_ones.split("\n") if "must differ by about" in line]
    assert len(told) == 2 and any(
        "Of " in line and "other.csv: two single" in line for line in told
    )
