"""N2: how the ratio of LoRA's best rate and full fine-tuning's depends on the width."""

import numpy as np

from lab import rates
from lab.claim import Claim, Finding, Part
from lab.rates import LEVEL, fitted, judge_range, shown
from lab.setting import FULL, Setting
from lab.small_model import SmallModel
from lora_jax.analysis import BestRate, rate_ratio, slope_on_log

CLAIM = Claim(
    id="N2",
    title="LoRA's best rate is about ten times full fine-tuning's, whatever the width",
    source="LoRA Without Regret, 2025, over more models",
    published="9.8 over 14 models; no dependence of the factor on hidden size (its fitted exponent is 0)",
    expected="the 90 % interval of the ratio of best rates within 5 to 20 on S of width 64, 96 and 160, rank 8 on all linear layers, alpha 32; slope of its logarithm on log width within -0.5 to 0.5",
    kind="trained",
    minutes=9,
    models="S of width 64, 96, 160",
    regime="100 steps of 16 sentences; best rates by a fit through 8 rates, a factor of 2 apart, under 3 seeds; full fine-tuning of the linear layers",
    distance="widths up to 160 where the paper's are 2,048 and more; the paper's argument from rank-invariance, hidden / (2 alpha), would be a slope of 1",
    limits={"low": 5, "high": 20, "slope": 0.5},
)
WIDTHS = (64, 96, 160)
LOWEST = {"full": -4, "LoRA": -2}  # where each grid of 8 rates begins
ARMS = {"full": FULL, "LoRA": {"lora.rank": 8, "lora.alpha": 32.0}}


def run(lab):
    bases = {f"S {width}": Setting(SmallModel(width=width)) for width in WIDTHS}
    found, ratios, parts = {}, {}, []
    for model, base in bases.items():
        for name, changes in ARMS.items():
            found[model, name] = fitted(lab, base.with_(**changes), LOWEST[name])
        both = found[model, "LoRA"].best, found[model, "full"].best
        edge = both[0].on_edge or both[1].on_edge
        ratios[model] = BestRate(rate_ratio(*both), 0.0, edge, LEVEL)
        verdict = judge_range(ratios[model].rate, CLAIM.limits["low"], CLAIM.limits["high"])
        said = f"{model}: {shown(ratios[model].rate)}" + (" (at an end of a grid)" if edge else "")
        parts.append(
            Part(f"the ratio on {model}", "effect", "inconclusive" if edge else verdict, said)
        )
    slope = slope_on_log(WIDTHS, [ratios[model] for model in bases])
    limit = CLAIM.limits["slope"]
    verdict = judge_range(slope[:3], -limit, limit)
    if any(ratios[model].on_edge for model in bases):
        verdict = "inconclusive"
    parts.append(Part("no slope on width", "equal", verdict, f"slope on log width {shown(slope)}"))
    return Finding(
        tuple(parts),
        {
            "curves": {f"{model}, {name}": one.summary() for (model, name), one in found.items()},
            "ratio": {model: rates.known(ratio.rate) for model, ratio in ratios.items()},
            "slope_on_log_width": dict(
                zip(("value", "low", "high", "scatter"), map(_finite, slope))
            ),
        },
        note="Brackets are 90 % intervals; a dash is an end that the curve does not tell.",
        plot={
            "lines": {
                "ratio": [
                    rates.point(width, ratio.rate) for width, ratio in zip(WIDTHS, ratios.values())
                ]
            },
            "x": "width of the model",
            "y": "LoRA's best rate over full fine-tuning's",
            "log": "xy",
            "published": {"9.8 (14 models)": 9.8},
        },
        seeds=rates.SEEDS,
        diverged=rates.diverged({f"{a}, {b}": one for (a, b), one in found.items()}),
    )


def _finite(value):
    return float(value) if np.isfinite(value) else None
