"""C17: two seeds share more directions in the query's update than in the value's."""

from statistics import fmean

import numpy as np

from lab.claim import Claim, Finding, Part
from lab.contrast import OverSeeds, interval_of
from lab.inside import over_pairs
from lab.setting import Setting
from lab.verdicts import judge_effect
from lora_jax.analysis import overlap_beyond_chance

CLAIM = Claim(
    id="C17",
    title="Two seeds share more directions in q than in v",
    source="LoRA, section 7.2, Figure 4",
    published="at rank 64 two seeds share directions, which random matrices do not, and more of them in the query's update than in the value's: a higher intrinsic rank",
    expected="of the first 16 directions of the update of two seeds, mean over the layers: at least one dimension is shared beyond chance, and in q half a dimension more than in v",
    kind="trained",
    minutes=1,
    models="S, one pretraining",
    regime="rank 64 on q+v, alpha 128, 100 steps of 16 sentences, own best rate; all pairs of different seeds",
    distance="directions of the whole update, in the space of inputs, where the paper takes those of A, which here keeps much of its random start; 16 directions of 160, chance 0.1",
    limits={"dimensions": 1.0, "more": 0.5},
)
BASE = Setting(bases=1).with_(
    **{"lora.targets": "query+value", "lora.rank": 64, "lora.alpha": 128.0}
)
NAMES, COUNT = ("q", "v"), 16


def shared(one: list[np.ndarray], other: list[np.ndarray]) -> np.ndarray:
    """Share beyond chance of the first 1 to `COUNT` directions, mean over layers."""
    first, second = (np.stack(layers)[..., :COUNT] for layers in (one, other))
    return np.diagonal(overlap_beyond_chance(first, second).share, axis1=-2, axis2=-1).mean(0)


def run(lab):
    arm = lab.arm("rank 64", BASE)
    updates = [
        {name: [m.update.u for m in lab.updates(one, (name,))] for name in NAMES}
        for one in arm.runs
        if one.result is not None
    ]

    sizes = (1, 2, 4, 8, COUNT)
    curves = {}  # dimensions shared beyond chance, mean over layers: (seeds, seeds, sizes)
    for name in NAMES:
        rows = [[shared(one[name], other[name]) for other in updates] for one in updates]
        curves[name] = {
            size: over_pairs(len(rows), lambda i, j, n=size, r=rows: n * r[i][j][n - 1])
            for size in sizes
        }
    found = {name: rows[COUNT] for name, rows in curves.items()}
    both = OverSeeds(tuple(map(fmean, zip(*(row.by_seed for row in found.values())))))
    more = OverSeeds(tuple(q - v for q, v in zip(found["q"].by_seed, found["v"].by_seed)))
    parts = (
        Part(
            "two seeds share directions",
            "effect",
            judge_effect(both, CLAIM.limits["dimensions"]),
            f"of the first {COUNT} directions q shares {found['q']} and v {found['v']} beyond "
            "chance",
        ),
        Part(
            "more in q than in v",
            "effect",
            judge_effect(more, CLAIM.limits["more"]),
            f"q shares {more} dimensions more than v",
        ),
    )
    return Finding(
        parts,
        {
            "shared": {name: interval_of(row.interval()) for name, row in found.items()},
            "more_in_q": interval_of(more.interval()),
            "by_count": {
                name: {str(count): interval_of(row.interval()) for count, row in rows.items()}
                for name, rows in curves.items()
            },
            "arms": {arm.name: arm.summary()},
        },
        plot={
            "lines": {
                name: [[count, *interval_of(row.interval())] for count, row in rows.items()]
                for name, rows in curves.items()
            },
            "x": "first directions of each update",
            "y": "dimensions shared beyond chance",
            "log": "x",
        },
        seeds=lab.seeds,
        diverged=arm.diverged,
    )
