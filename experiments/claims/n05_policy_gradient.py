"""N5: rank matters less for policy gradient than for supervised tuning."""

from dataclasses import replace

from lab.claim import Claim, Finding, Part
from lab.contrast import contrast, difference, diverged_in, forest_row, interval_of
from lab.setting import FULL, MINILM
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="N5",
    title="Rank 1 costs less under policy gradient than under supervision",
    source="LoRA Without Regret, 2025: rewards tell little, so that little capacity is needed",
    published="rank 1 is enough for policy gradient, supervised tuning needs more with the size of the data",
    expected="the share of right answers that rank 1 is below full fine-tuning of the linear layers is a point larger under supervision than under rewards, on the same texts and steps",
    kind="trained",
    minutes=1,
    models="MiniLM",
    regime="Rotten Tomatoes, 100 steps of 16, all linear layers; each arm at its own best rate, of the expected reward or of the cross-entropy; rewards as in C30",
    distance="1,600 labels are few for rank 1 of 41,472 parameters, too, so that no gap is to be expected of capacity on either side",
    limits={"points": 0.01},
)


def run(lab):
    bases = {"rewards": replace(MINILM, rewarded=True), "labels": MINILM}
    arms = {
        of: {
            "rank 1": lab.arm(f"rank 1, {of}", base.with_(**{"lora.rank": 1})),
            "full": lab.arm(f"full, {of}", base.with_(**FULL)),
        }
        for of, base in bases.items()
    }
    behind = {of: difference(two["full"], two["rank 1"], "correct") for of, two in arms.items()}
    terms = [
        (sign * side, arms[of][name])
        for of, sign in (("labels", 1.0), ("rewards", -1.0))
        for name, side in (("full", 1.0), ("rank 1", -1.0))
    ]
    more = contrast(terms, column="correct")
    part = Part(
        "rank 1 costs more under supervision",
        "effect",
        judge_effect(more, CLAIM.limits["points"]),
        f"share of right answers of rank 1 below full: {behind['labels']} with labels, "
        f"{behind['rewards']} with rewards, {more} more",
    )
    forest = {f"below full, {of}": gap for of, gap in behind.items()} | {"more with labels": more}
    every = [arm for two in arms.values() for arm in two.values()]
    return Finding(
        (part,),
        {
            "below_full": {of: interval_of(gap.interval()) for of, gap in behind.items()},
            "more_with_labels": interval_of(more.interval()),
            "arms": {arm.name: arm.summary() for arm in every},
        },
        plot={
            "forest": {name: forest_row(gap) for name, gap in forest.items()},
            "x": "difference of the share of right answers",
        },
        seeds=lab.seeds,
        diverged=diverged_in(every),
    )
