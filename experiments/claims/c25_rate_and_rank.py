"""C25: under alpha / r the best rate does not move with rank, and early curves coincide."""

import numpy as np

from lab import rates
from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import OverSeeds, interval_of
from lab.protocol import rate_at
from lab.rates import by_rank, judge_range, shown
from lab.verdicts import judge_equal
from lora_jax.analysis import rate_ratio

CLAIM = Claim(
    id="C25",
    title="Under alpha / r the best rate moves little from rank 4 to 64, is lower at rank 1, and early curves coincide",
    source="LoRA Without Regret, 2025",
    published="best rate within a factor 2 from rank 4 to 512, rank 1 lower; equal early curves",
    expected="S, alpha 16: 90 % intervals of the ratios of best rates of ranks 4, 16 and 64 within a factor of 2; that of rank 1 over rank 4 below 1, and not above 0.8; at one rate, training losses of ranks 16 and 64 at steps 16 to 20 equal to 5 % of the fall so far",
    kind="trained",
    minutes=5,
    models="S",
    regime="100 steps of 16 sentences; best rates by a fit through 8 rates, a factor of 2 apart, under 3 seeds",
    distance="ranks to 64 of a width of 160; the paper has 512 of 2,048 and more",
    limits={"factor": 2.0, "lower": 0.8, "early": 0.05},
)
PAIRS = ((4, 16), (4, 64), (16, 64))
AT = 1  # the point of the grid of the early curves: 2e-3
EARLY = slice(15, 20)  # steps


def early(lab, found):
    """(difference of ranks 16 and 64, fall so far) of each seed."""
    curves = {
        rank: np.array(
            [
                [loss for _, loss in lab.trace(run)]
                for run in (
                    lab.run(found[rank].setting, seed, rate_at(AT), scored=False)
                    for seed in rates.SEEDS
                )
            ]
        )
        for rank in (16, 64)
    }
    mean = {rank: rows[:, EARLY].mean(1) for rank, rows in curves.items()}
    return mean[16] - mean[64], curves[16][:, 0] - mean[16], curves


def run(lab):
    found = by_rank(lab, "standard")
    ratio = lambda a, b: rate_ratio(found[a].best, found[b].best)
    between = {f"{a} over {b}": ratio(a, b) for a, b in PAIRS}
    factor = CLAIM.limits["factor"]
    close = [judge_range(one, 1 / factor, factor) for one in between.values()]
    first = ratio(1, 4)
    lower = "inconclusive" if first.low <= CLAIM.limits["lower"] else "not reproduced"
    lower = "reproduced" if first.high < 1 and first.value <= CLAIM.limits["lower"] else lower
    apart, fall, curves = early(lab, found)
    gap = OverSeeds(tuple(float(x) for x in apart))
    edge = [f"rank {rank}" for rank, one in found.items() if one.best.on_edge]
    settled = lambda verdict: "inconclusive" if edge else verdict
    parts = (
        Part(
            "best rates of ranks 4, 16, 64",
            "equal",
            settled(judge_all(close)),
            ", ".join(f"{name}: {shown(one)}" for name, one in between.items()),
        ),
        Part("lower at rank 1", "effect", settled(lower), f"rank 1 over rank 4: {shown(first)}"),
        Part(
            "early curves of ranks 16 and 64",
            "equal",
            judge_equal(gap, CLAIM.limits["early"] * float(fall.mean())),
            f"at step 20 {gap} nats apart, of a fall of {fall.mean():.3f}",
        ),
    )
    return Finding(
        parts,
        {
            "curves": {f"rank {rank}": one.summary() for rank, one in found.items()},
            "ratio": {k: rates.known(v) for k, v in (between | {"1 over 4": first}).items()},
            "early_difference": interval_of(gap.interval()),
            "early_fall": float(fall.mean()),
            "early_curves": {str(r): rows.mean(0)[:30].tolist() for r, rows in curves.items()},
        },
        note="Brackets of rates are 90 % intervals of fits, those of losses 95 % over seeds."
        + (f" At an end of its grid: {', '.join(edge)}." if edge else ""),
        plot={
            "lines": {f"rank {rank}": one.line() for rank, one in found.items()},
            "x": "learning rate",
            "y": "validation loss, nats",
            "log": "x",
        },
        seeds=rates.SEEDS,
        diverged=rates.diverged({f"rank {rank}": one for rank, one in found.items()}),
    )
