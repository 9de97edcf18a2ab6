"""What counts as supported: the thresholds of the sentences, at their edges."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_sweep import result_by, result_of

from lora_jax.config import Config, LoraConfig, TrainConfig, to_dict
from lora_jax.statistics.paired import PairedTest
from lora_jax.sweeps.cells import cells_of
from lora_jax.sweeps.comparisons import Comparison
from lora_jax.sweeps.conclusions import conclude
from lora_jax.sweeps.grid import run_id
from lora_jax.sweeps.store import RunRecord


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
    assert ("With fewer than five seeds" in open_ones) == (1 < seeds < 5)


def test_six_undecided_pairs_are_named_and_missing_runs_are_counted():
    _, open_ones = said(contrasts=[pair(0.5, first=str(n)) for n in range(6)], missing=1)
    assert open_ones.count("no difference is shown") == 6 and "more pairs" not in open_ones
    assert "1 planned run has no result" in open_ones
    _, open_ones = said(contrasts=[pair(0.5, first=str(n)) for n in range(8)], missing=2)
    assert open_ones.count("no difference is shown") == 6
    assert "2 more pairs of levels differ" in open_ones
    assert "2 planned runs have no result" in open_ones
