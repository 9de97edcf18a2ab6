"""C24: LoRA's best learning rate is about ten times that of full fine-tuning."""

from lab import rates
from lab.claim import Claim, Finding, Part
from lab.rates import fitted, judge_range, over, shown
from lab.setting import FULL, S
from lora_jax.analysis import rate_ratio

CLAIM = Claim(
    id="C24",
    title="LoRA's best rate is about ten times full fine-tuning's, and more in short runs",
    source="LoRA Without Regret, 2025",
    published="9.8 over 14 models on Tulu3; about 15 for runs of 100 steps or fewer; alpha 32",
    expected="S, rank 8 on all linear layers, alpha 32: the 90 % interval of the ratio of both best rates within 5 to 20 at 100 steps; and the ratio at 25 steps above that at 100",
    kind="trained",
    minutes=5,
    models="S",
    regime="25 and 100 steps of 16 sentences; best rates by a fit through 8 rates, a factor of 2 apart, under 3 seeds on 3 pretrainings; full fine-tuning of the linear layers",
    distance="width 160 where the paper's models have 2,048 and more; its 100 steps are its shortest runs; MiniLM and other widths are in N2",
    limits={"low": 5, "high": 20},
)
# Where each grid of 8 rates begins: 6e-5 to 8e-3, and 2.5e-4 to 3.2e-2.
ARMS = {"full": (FULL, -4), "LoRA": ({"lora.rank": 8, "lora.alpha": 32.0}, -2)}
STEPS = (100, 25)


def run(lab):
    found, ratios = {}, {}
    for steps in STEPS:
        for name, (changes, lowest) in ARMS.items():
            setting = S.with_(**changes, **({} if steps == 100 else {"train.total_steps": steps}))
            found[f"{name}, {steps} steps"] = fitted(lab, setting, lowest)
        best = [found[f"{name}, {steps} steps"].best for name in ("LoRA", "full")]
        ratios[steps] = rate_ratio(*best)
    edge = [name for name, one in found.items() if one.best.on_edge]
    shorter = over(ratios[25], ratios[100])
    judged = {
        "the ratio at 100 steps": judge_range(
            ratios[100], CLAIM.limits["low"], CLAIM.limits["high"]
        ),
        "more in shorter runs": judge_range(shorter, 1, float("inf")),
    }
    said = (
        f"{shown(ratios[100])} at 100 steps",
        f"{shown(ratios[25])} at 25 steps, {shown(shorter)} times that at 100",
    )
    return Finding(
        tuple(
            Part(says, "effect", "inconclusive" if edge else verdict, ours)
            for (says, verdict), ours in zip(judged.items(), said)
        ),
        {
            "curves": {name: one.summary() for name, one in found.items()},
            "ratio": {str(steps): rates.known(ratio) for steps, ratio in ratios.items()},
            "shorter_over_longer": rates.known(shorter),
        },
        note="Brackets of rates and ratios are 90 % intervals of fits. The paper's own argument from "
        "rank-invariance, hidden / (2 alpha), gives 2.5 here."
        + (f" At an end of its grid: {', '.join(edge)}." if edge else ""),
        plot={
            "lines": {name: one.line() for name, one in found.items()},
            "x": "learning rate",
            "y": "validation loss, nats",
            "log": "x",
        },
        seeds=rates.SEEDS,
        diverged=rates.diverged(found),
    )
