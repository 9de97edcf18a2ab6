"""C15: quality saturates with rank."""

from lab.claim import Claim, Finding, Part
from lab.contrast import difference, diverged_in, forest_row, interval_of
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect, judge_equal

CLAIM = Claim(
    id="C15",
    title="Quality saturates with rank",
    source="LoRA, Table 18",
    published="GPT-2 M, validation loss 1.23 at rank 1, 1.16 from 16 to 512, 1.17 at 1024",
    expected="all linear layers: rank 1 is worse than rank 16 by a tenth of what that gains on the untuned model, and rank 64 differs from rank 16 by less than a tenth",
    kind="trained",
    minutes=4,
    models="S",
    regime="100 steps of 16 sentences, each arm at its own best rate, alpha 16",
    distance="rank 64 of 160 inputs at most, where the paper goes to 1024 of 1024; 100 steps in place of five epochs",
    limits={"share": MARGIN},
)
RANKS = (1, 4, 16, 64)


def run(lab):
    found = {rank: lab.arm(f"rank {rank}", S.with_(**{"lora.rank": rank})) for rank in RANKS}
    gain = found[16].gain().value
    rise, past = difference(found[1], found[16]), difference(found[64], found[16])
    parts = (
        Part(
            "rank matters below 16",
            "effect",
            judge_effect(rise, max(MARGIN * gain, 0.0)),
            f"rank 1 is {rise} nats above rank 16 ({rise.value / gain:.0%} of its gain)",
        ),
        Part(
            "rank does not matter past 16",
            "equal",
            judge_equal(past, MARGIN * gain),
            f"rank 64 is {past} nats above rank 16 ({past.value / gain:.0%})",
        ),
    )
    above = {rank: difference(arm, found[16]) for rank, arm in found.items() if rank != 16}
    return Finding(
        parts,
        {
            "above_rank_16": {str(r): interval_of(gap.interval()) for r, gap in above.items()},
            "arms": {arm.name: arm.summary() for arm in found.values()},
        },
        plot={
            "forest": {f"rank {rank}": forest_row(gap) for rank, gap in above.items()},
            "x": "loss above rank 16, nats",
            "margin": MARGIN * gain,
            "published": {"rank 1, GPT-2 M": 0.07},
        },
        seeds=lab.seeds,
        diverged=diverged_in(found.values()),
    )
