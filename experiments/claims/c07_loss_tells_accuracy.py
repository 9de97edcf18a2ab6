"""C7: what quantisation does to the loss tells what it does to accuracy."""

import numpy as np
from scipy import stats

from lab.changes import Stored
from lab.claim import Claim, Finding, Part
from lab.contrast import OverSeeds, interval_of
from lab.setting import MINILM
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="C7",
    title="Loss tells accuracy under quantisation",
    source="The case for 4-bit precision (arXiv 2212.09720), section 3",
    published="Pearson correlation of perplexity and zero-shot accuracy -0.94",
    expected="MiniLM tuned on Rotten Tomatoes with LoRA, its frozen base then stored in 18 formats: the correlation over formats of loss and accuracy, mean of three tuned models, is -0.9 or below, with an interval below 0",
    kind="weights",
    minutes=4,
    models="MiniLM",
    regime="2 to 8 bits in blocks of 64 or a channel, adapters and head as they were tuned over float32; 1,066 test sentences",
    distance="one task and one model whose formats differ; in the paper models differ as well, which widens the range",
    limits={"correlation": 0.9},
)
NAMES = ("nf2", "int2", "nf3", "int3", "nf4", "af4", "fp4", "fp4_e2m1", "fp4_e3m0", "int4", "nf5")
CHANGES = [Stored(name, double=False) for name in (*NAMES, "int6", "int8")]
CHANGES += [Stored(name, None, double=False) for name in ("nf3", "int3", "nf4", "int4", "fp4")]
SEEDS = 3


def run(lab):
    arm = lab.arm("LoRA", MINILM)
    points = []
    for run in arm.runs[:SEEDS]:
        measured = [lab.losses(run, "B", change)[0] for change in CHANGES]
        # Of two classes an answer is right if it has more than half of the probability.
        points.append([[float(x.mean()), float((x < np.log(2)).mean())] for x in measured])
    table = np.array(points)
    found = OverSeeds(tuple(-_pearson(rows) for rows in table))
    narrow = [
        n
        for n, change in enumerate(CHANGES)
        if not change.format.endswith("f2") and change.format != "int2"
    ]
    without = OverSeeds(tuple(-_pearson(rows[narrow]) for rows in table))
    mean = table.mean(0)
    ranks = stats.spearmanr(mean[:, 0], mean[:, 1]).statistic if np.ptp(mean[:, 1]) else 0.0
    said = (
        f"correlation {-found.value:.3f} over {len(CHANGES)} formats "
        f"(without those of 2 bits {-without.value:.3f})"
    )
    return Finding(
        (
            Part(
                "loss and accuracy",
                "effect",
                judge_effect(found, CLAIM.limits["correlation"]),
                said,
            ),
        ),
        {
            "minus_correlation": interval_of(found.interval()),
            "minus_correlation_without_2_bits": interval_of(without.interval()),
            "rank_correlation": float(ranks),
            "loss_and_accuracy": {c.name: row for c, row in zip(CHANGES, mean.tolist())},
            "arm": arm.summary(),
        },
        plot={
            "x": "loss, nats",
            "y": "accuracy",
            "lines": {
                f"seed {run.seed}": sorted(rows) for run, rows in zip(arm.runs, table.tolist())
            },
        },
        seeds=tuple(run.seed for run in arm.runs[:SEEDS]),
        diverged=arm.diverged,
    )


def _pearson(rows: np.ndarray) -> float:
    """0 where one of the two does not vary: then nothing is told."""
    return float(np.corrcoef(rows.T)[0, 1]) if np.ptp(rows, axis=0).all() else 0.0
