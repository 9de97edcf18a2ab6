"""C32: with all linear layers adapted, the rank does not matter."""

from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import difference, diverged_in, forest_row, interval_of
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_equal

CLAIM = Claim(
    id="C32",
    title="With all linear layers adapted, rank does not matter",
    source="QLoRA, Appendix A, Figure 4",
    published="RougeL on Alpaca does not depend on the rank, 8 to 256, once all layers are adapted",
    expected="ranks 2, 4, 16, 32 and 64 differ from rank 8 by less than a tenth of what rank 8 gains on the untuned model",
    kind="trained",
    minutes=3,
    models="S",
    regime="100 steps of 16 sentences, each rank at its own best rate, alpha 16",
    distance="ranks of 1 to 40 % of the width, where 8 to 256 of LLaMA-7B are 0.2 to 6 %; the loss in place of RougeL, which is coarser",
    limits={"share": MARGIN},
)
RANKS = (2, 4, 16, 32, 64)


def run(lab):
    eight = lab.arm("rank 8", S.with_(**{"lora.rank": 8}))
    found = {rank: lab.arm(f"rank {rank}", S.with_(**{"lora.rank": rank})) for rank in RANKS}
    gain = eight.gain().value
    gaps = {rank: difference(arm, eight) for rank, arm in found.items()}
    part = Part(
        "every rank from 2 to 64 is like rank 8",
        "equal",
        judge_all([judge_equal(gap, MARGIN * gain) for gap in gaps.values()]),
        "above rank 8: "
        + ", ".join(f"rank {rank} {gap}" for rank, gap in gaps.items())
        + f" (a tenth of its gain: {MARGIN * gain:.3f})",
    )
    arms = (eight, *found.values())
    return Finding(
        (part,),
        {
            "above_rank_8": {str(r): interval_of(gap.interval()) for r, gap in gaps.items()},
            "arms": {arm.name: arm.summary() for arm in arms},
        },
        plot={
            "forest": {f"rank {rank}": forest_row(gap) for rank, gap in gaps.items()},
            "x": "loss above rank 8, nats",
            "margin": MARGIN * gain,
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms),
    )
