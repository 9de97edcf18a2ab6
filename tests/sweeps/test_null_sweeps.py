"""Where nothing differs, nothing is called different: simulated sweeps through the function that
writes the conclusions.
"""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lora_jax.config import Config, SweepConfig, to_dict
from lora_jax.metrics.score import Score
from lora_jax.sweeps.cells import cells_of
from lora_jax.sweeps.findings import findings_of
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.store import RunRecord
from lora_jax.training.result import RunResult

SWEEPS = 200


@functools.cache
def planned(ranks, formats, seeds):
    """(run, its settings as a dict) of a grid; made once for all simulated sweeps."""
    sweep = SweepConfig(rank=ranks, format=formats, seeds=tuple(range(seeds)))
    runs = expand(replace(Config(), sweep=sweep))
    return [(run, run_id(run), to_dict(run)) for run in runs]


def sweep(draw, *, ranks=(4, 16), formats=("none",), seeds=3, gain=0.0, luck=0.02, steadier=1.0):
    """Cells of a made-up sweep: 0.8 right, and what a seed (`luck`, in all settings alike) and a
    run add; `gain` for the largest rank. What a seed does to a rank is a part of its own: not all
    runs are independent. The loss moves with the accuracy.
    """
    of_seed, of_rank = (
        draw.normal(0, luck, seeds),
        draw.normal(0, 0.01 / steadier, (len(ranks), seeds)),
    )
    records = []
    for run, name, config in planned(ranks, formats, seeds):
        place, seed = ranks.index(run.lora.rank), run.train.seed
        shared = of_seed[seed] + of_rank[place, seed] + gain * (place == len(ranks) - 1)
        known, right, loss = draw.normal(0, [0.01, 0.01, 0.02])
        scores = {
            split: {
                "accuracy": Score("accuracy", 0.8 + shared + known + extra, count=1000, share=True),
                "loss": Score(
                    "loss", 0.5 - 2 * (shared + known) + loss, higher_is_better=False, count=1000
                ),
            }
            for split, extra in (("validation", right), ("test", -right))
        }
        folder = Path(name)
        records.append(RunRecord(name, folder, "done", config=config, result=RunResult(scores)))
    return cells_of(records)


def conclusions(seed, sweeps=SWEEPS, **options):
    draw = np.random.default_rng(seed)
    return [findings_of(sweep(draw, **options)).conclusions for _ in range(sweeps)]


@pytest.mark.parametrize(
    ("seed", "grid"),
    [(1, {}), (2, {"ranks": (1, 4, 16), "formats": ("none", "nf4")})],
    ids=["two equal arms", "six equal arms"],
)
def test_equal_arms_have_a_winner_in_at_most_one_sweep_of_twenty(seed, grid):
    found = conclusions(seed, **grid)
    assert sum(bool(one.supported) for one in found) <= 0.05 * SWEEPS


def test_a_real_difference_is_found_and_is_not_called_alike():
    """Of 10 points, with a deviation of 2.4 points between the differences of one seed."""
    found = conclusions(3, sweeps=20, gain=0.1, seeds=5)
    assert sum("Rank **16** beats 4" in " ".join(one.supported) for one in found) >= 19
    assert not any(one.alike for one in found)
