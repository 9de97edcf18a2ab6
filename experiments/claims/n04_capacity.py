"""N4: an adapter stores about two bits a parameter."""

from math import log

import numpy as np
from scipy import stats

from lab.claim import Claim, Finding, Part
from lab.contrast import OverSeeds, diverged_in, interval_of
from lab.setting import Setting
from lab.small_model import RANDOM_WORDS, VOCABULARY, SmallModel
from lab.verdicts import judge_equal

CLAIM = Claim(
    id="N4",
    title="LoRA stores about two bits a parameter",
    source="LoRA Without Regret, 2025 (LoRA's capacity); Allen-Zhu & Li 2024 (arXiv 2404.05405): two bits a parameter",
    published="2 bits a parameter in pretraining; LoRA falls behind where the data exceed what its parameters hold",
    expected="of 192 rows of random words (24.6 kbit), the bits that training takes away from the loss, as ranks 1, 2 and 4 on the MLP hold them: a slope of 0.5 to 3 bits a trained parameter",
    kind="trained",
    minutes=8,
    models="S of width 64",
    regime="600 steps of 32 rows (100 epochs), alpha 16, each rank at its own best rate; 3,072, 6,144 and 12,288 parameters; scored on the rows that were trained on, as storing is what is asked",
    distance="100 epochs, where exposures of 1,000 are needed for two bits (Allen-Zhu & Li): a lower bound",
    limits={"low": 0.5, "high": 3.0},
)
ROWS = 192
PARAMETERS = 4 * 3 * (64 + 3 * 64)  # of rank 1 on gate, up and down of four layers of width 64
ALL = ROWS * RANDOM_WORDS * np.log2(VOCABULARY)
MEMORISE = {"data.name": f"random-{ROWS}", "train.total_steps": 600, "train.batch_size": 32}
BASE = Setting(SmallModel(width=64)).with_(**MEMORISE, **{"lora.targets": "mlp"})


def stored(arm) -> list[float]:
    """Bits of the rows that every seed's loss leaves no longer open; below 0 where its loss is
    worse than knowing no more than which words there are.
    """
    open_bits = arm.losses @ arm.weights / log(2) * ROWS / len(arm.weights)
    return [float(ALL - bits) for bits in open_bits]


def run(lab):
    arms = {rank: lab.arm(f"rank {rank}", BASE.with_(**{"lora.rank": rank})) for rank in (1, 2, 4)}
    bits = {rank: stored(arm) for rank, arm in arms.items()}
    sizes = [rank * PARAMETERS for rank in arms]
    slope = OverSeeds(
        tuple(float(stats.linregress(sizes, row).slope) for row in zip(*bits.values()))
    )
    low, high = CLAIM.limits["low"], CLAIM.limits["high"]
    middle = OverSeeds(tuple(value - (low + high) / 2 for value in slope.by_seed))
    part = Part(
        "0.5 to 3 bits a parameter",
        "equal",
        judge_equal(middle, (high - low) / 2),
        f"{slope} bits for each further parameter; stored "
        + ", ".join(
            f"{OverSeeds(tuple(row)).value / 1000:.1f} kbit at rank {rank}"
            for rank, row in bits.items()
        )
        + f" of {ALL / 1000:.1f}",
    )
    return Finding(
        (part,),
        {
            "bits": {str(rank): row for rank, row in bits.items()},
            "bits_a_parameter": {
                str(rank): interval_of(
                    OverSeeds(tuple(b / (rank * PARAMETERS) for b in row)).interval()
                )
                for rank, row in bits.items()
            },
            "slope": interval_of(slope.interval()),
            "arms": {arm.name: arm.summary() for arm in arms.values()},
        },
        plot={
            "lines": {
                "LoRA on the MLP": [
                    [rank * PARAMETERS, *interval_of(OverSeeds(tuple(row)).interval())]
                    for rank, row in bits.items()
                ],
                "two bits a parameter": [[size, 2.0 * size] for size in sizes],
            },
            "x": "trained parameters",
            "y": "bits stored",
            "published": {"all there are": ALL},
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms.values()),
    )
