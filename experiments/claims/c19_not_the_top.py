"""C19: the update does not follow the weight's own top directions."""

from statistics import fmean

from lab.claim import Claim, Finding, Part
from lab.contrast import OverSeeds, forest_row, interval_of
from lab.setting import S
from lab.verdicts import judge_effect
from lora_jax.analysis import overlap_with_top

CLAIM = Claim(
    id="C19",
    title="The update avoids W's top directions",
    source="LoRA, Appendix H.4, Figure 8",
    published="phi(top 10 % of W, top 4 of the update) barely exceeds 0.2 for the query; chance gives 0.1",
    expected="rank 4, mean over q and v of all layers: phi below chance (0.1) by a fifth of it or more. That it is as small as chance is no evidence: a random update has that",
    kind="trained",
    minutes=1,
    models="S",
    regime="all linear layers, 100 steps of 16 sentences, alpha 16, own best rate",
    distance="the published value lies above chance, too: the figure compares with W's own directions, not with random ones",
    limits={"below": 0.02},
)
SHARE, COUNT = 0.1, 4


def run(lab):
    arm = lab.arm("rank 4", S.with_(**{"lora.rank": COUNT}))
    rows = []
    for one in arm.runs:
        if one.result is not None:
            matrices = lab.updates(one, ("q", "v"))
            rows.append(
                [overlap_with_top(m.weight, m.update, share=SHARE, rank=COUNT) for m in matrices]
            )
    inputs = min(matrices[0].weight.shape)
    chance = round(SHARE * inputs) / inputs
    overlap = OverSeeds(tuple(map(fmean, rows)))
    below = OverSeeds(tuple(chance - value for value in overlap.by_seed))
    part = Part(
        "less of W's top than chance",
        "effect",
        judge_effect(below, CLAIM.limits["below"]),
        f"phi {overlap}, chance {chance:.3f}",
    )
    layers = {
        f"{m.path.split('/')[-2]}, layer {m.layer}": OverSeeds(tuple(row[place] for row in rows))
        for place, m in enumerate(matrices)
    }
    table = {"all": overlap} | layers
    return Finding(
        (part,),
        {
            "phi": {name: interval_of(row.interval()) for name, row in table.items()},
            "chance": chance,
            "arms": {arm.name: arm.summary()},
        },
        plot={
            "forest": {name: forest_row(row) for name, row in table.items()},
            "x": "phi(top 10 % of W, top 4 of the update)",
            "published": {"chance": chance, "GPT-3": 0.2},
        },
        seeds=lab.seeds,
        diverged=arm.diverged,
    )
