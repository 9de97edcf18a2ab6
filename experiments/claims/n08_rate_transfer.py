"""N8: the best rate over ranks, under alpha / r and alpha / sqrt(r)."""

from lab import rates
from lab.claim import Claim, Finding, Part
from lab.rates import RANKS, by_rank, judge_range, shown
from lora_jax.analysis import rate_ratio, slope_on_log

CLAIM = Claim(
    id="N8",
    title="A rate found at one rank serves at others under alpha / r, and is too large for higher ones under alpha / sqrt(r)",
    source="Learning Rate Scaling across LoRA Ranks (arXiv 2602.06204)",
    published="under alpha / r the best rate does not move with rank; under other scales it does",
    expected="S, alpha 16, ranks 1, 4, 16, 64: 90 % interval of the slope of log best rate on log rank within -0.15 to 0.15 under alpha / r, below 0 under alpha / sqrt(r), and at rank 64 a lower best rate under the second than under the first",
    kind="trained",
    minutes=7,
    models="S",
    regime="100 steps of 16 sentences; best rates by a fit through 8 rates, a factor of 2 apart, under 3 seeds",
    distance="one model of width 160; a real model (MiniLM) would take 75 min",
    limits={"slope": 0.15},
)
NAMES = {"standard": "alpha / r", "rslora": "alpha / sqrt(r)"}


def run(lab):
    found = {scaling: by_rank(lab, scaling) for scaling in NAMES}
    slopes = {
        scaling: slope_on_log(RANKS, [row[rank].best for rank in RANKS])
        for scaling, row in found.items()
    }
    ratios = {
        rank: rate_ratio(found["rslora"][rank].best, found["standard"][rank].best)
        for rank in RANKS[1:]
    }
    edge = [
        f"rank {rank} under {NAMES[scaling]}"
        for scaling, row in found.items()
        for rank, one in row.items()
        if one.best.on_edge
    ]
    limit, inf = CLAIM.limits["slope"], float("inf")
    judged = (
        ("no slope under alpha / r", "equal", judge_range(slopes["standard"][:3], -limit, limit)),
        (
            "a falling rate under alpha / sqrt(r)",
            "effect",
            judge_range(slopes["rslora"][:3], -inf, 0),
        ),
        ("at rank 64 a lower rate than under alpha / r", "effect", judge_range(ratios[64], 0, 1)),
    )
    said = (shown(slopes["standard"]), shown(slopes["rslora"]), f"ratio {shown(ratios[64])}")
    curves = {
        f"rank {rank}, {NAMES[scaling]}": row[rank]
        for scaling, row in found.items()
        for rank in row
    }
    return Finding(
        tuple(
            Part(says, rule, "inconclusive" if edge else verdict, f"{says}: {ours}")
            for (says, rule, verdict), ours in zip(judged, said)
        ),
        {
            "curves": {name: one.summary() for name, one in curves.items()},
            "slope": {
                scaling: dict(zip(("value", "low", "high", "scatter"), rates.known(slope)))
                for scaling, slope in slopes.items()
            },
            "rslora_over_standard": {str(r): rates.known(one) for r, one in ratios.items()},
        },
        note="Brackets are 90 % intervals; a slope's is wider by Birge's ratio where the four best "
        "rates scatter more than their own intervals allow."
        + (f" At an end of its grid: {', '.join(edge)}." if edge else ""),
        plot={
            "lines": {
                NAMES[scaling]: [rates.point(rank, row[rank].best.rate) for rank in RANKS]
                for scaling, row in found.items()
            },
            "x": "rank",
            "y": "best learning rate",
            "log": "xy",
        },
        seeds=rates.SEEDS,
        diverged=rates.diverged(curves),
    )
