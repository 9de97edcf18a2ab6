"""N1: LoRA's gap to full fine-tuning shrinks with the training of the base."""

from math import log

from scipy import stats

from lab.claim import Claim, Finding, Part
from lab.contrast import OverSeeds, difference, diverged_in, interval_of
from lab.protocol import MARGIN
from lab.setting import FULL, Setting
from lab.small_model import SmallModel
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="N1",
    title="The longer the base was pretrained, the less of full fine-tuning's gain LoRA misses",
    source="own question; LoRA, section 4 (low intrinsic rank of what remains to be learnt) and Aghajanyan et al. 2021 (arXiv 2012.13255), Figure 3",
    published="intrinsic dimension falls along pretraining (RoBERTa, six tasks)",
    expected="the share of full fine-tuning's gain that LoRA of rank 8 misses is larger on the base of 400 steps than on that of 7,200, by 0.1, and falls over 400, 1,200, 3,600 and 7,200 steps (Page's test over the seeds, 5 %)",
    kind="trained",
    minutes=9,
    models="S of one pretraining seed, stopped at four lengths",
    regime="100 steps of 16 sentences, linear layers, each arm at its own best rate on its base",
    distance="one width, one pretraining seed, each length with a cosine schedule of its own",
    limits={"fall": MARGIN, "p": 0.05},
)
STEPS = (400, 1200, 3600, 7200)


def run(lab):
    shares, arms, gaps = {}, [], {}
    for steps in STEPS:
        base = Setting(SmallModel(steps=steps), bases=1)
        low = lab.arm(f"rank 8 on {steps} steps", base)
        full = lab.arm(f"full on {steps} steps", base.with_(**FULL))
        gaps[steps], gain = difference(low, full), full.gain()
        shares[steps] = [gap / of for gap, of in zip(gaps[steps].by_seed, gain.by_seed)]
        arms += [low, full]
    fall = OverSeeds(tuple(a - b for a, b in zip(shares[STEPS[0]], shares[STEPS[-1]])))
    # Page's test asks for a rise over the columns.
    p = float(stats.page_trend_test([[-s for s in row] for row in zip(*shares.values())]).pvalue)
    verdict = judge_effect(fall, CLAIM.limits["fall"])
    if verdict == "reproduced" and p >= CLAIM.limits["p"]:
        verdict = "inconclusive"
    part = Part(
        "the missed share falls",
        "effect",
        verdict,
        "missed share of full's gain: "
        + ", ".join(f"{steps} steps {OverSeeds(tuple(row))}" for steps, row in shares.items())
        + f"; it falls by {fall} (Page's test: p = {p:.2g})",
    )
    slopes = [
        float(stats.linregress([log(steps) for steps in STEPS], row).slope)
        for row in zip(*shares.values())
    ]
    return Finding(
        (part,),
        {
            "missed": {str(steps): row for steps, row in shares.items()},
            "fall": interval_of(fall.interval()),
            "page_p": p,
            "slope_on_log_steps": interval_of(OverSeeds(tuple(slopes)).interval()),
            "behind_full": {str(s): interval_of(gap.interval()) for s, gap in gaps.items()},
            "arms": {arm.name: arm.summary() for arm in arms},
        },
        plot={
            "lines": {
                "rank 8": [
                    [steps, *interval_of(OverSeeds(tuple(row)).interval())]
                    for steps, row in shares.items()
                ]
            },
            "x": "steps of pretraining",
            "y": "share of full's gain that is missed",
            "log": "x",
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms),
    )
