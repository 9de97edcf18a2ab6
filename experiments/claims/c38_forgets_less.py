"""C38: LoRA learns less and forgets less."""

import numpy as np

from lab.claim import Claim, Finding, Part
from lab.contrast import difference, diverged_in, forest_row, interval_of, of_losses
from lab.protocol import MARGIN
from lab.setting import FULL, S
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="C38",
    title="LoRA learns less and forgets less, after equal steps",
    source="LoRA Learns Less and Forgets Less (arXiv 2405.09673), Tables S5-S6",
    published="code, epoch 4: HumanEval .358 .417 .498 .470, kept .652 .632 .631 .512 for rank 16, 64, 256, full",
    expected="from A to B, each at the rate that is best on B: rank 16 gains less on B than full fine-tuning of the linear layers by a tenth of what that gains, and its loss on A rises less by a tenth of what that rises",
    kind="trained",
    minutes=1,
    models="S",
    regime="100 steps of 16 sentences of Rotten Tomatoes after pretraining on IMDB, equal steps; at equal learning it is N6",
    distance="two kinds of film reviews are nearer to each other than web text and code are, and 100 steps a short run",
    limits={"share": MARGIN},
)
RANKS = (1, 16, 64)


def run(lab):
    full = lab.arm("full", S.with_(**FULL))
    found = {rank: lab.arm(f"rank {rank}", S.with_(**{"lora.rank": rank})) for rank in RANKS}
    before = np.stack([lab.losses((S, seed), "A", None)[0] for seed in full.seeds])
    old = {arm.name: lab.after(arm, "A") for arm in (full, *found.values())}
    weights = old["full"][1]
    rise = {
        name: of_losses(((1, after), (-1, before)), weights) for name, (after, _) in old.items()
    }
    kept = {
        rank: of_losses(((1, old["full"][0]), (-1, old[arm.name][0])), weights)
        for rank, arm in found.items()
    }
    less = {rank: difference(arm, full) for rank, arm in found.items()}
    gain, lost = full.gain().value, rise["full"].value
    parts = (
        Part(
            "learns less",
            "effect",
            judge_effect(less[16], max(MARGIN * gain, 0.0)),
            f"rank 16 is {less[16]} nats above full on B ({less[16].value / gain:.0%} of its gain)",
        ),
        Part(
            "forgets less",
            "effect",
            judge_effect(kept[16], max(MARGIN * lost, 0.0)),
            f"on A full is {kept[16]} nats above rank 16 ({kept[16].value / lost:.0%} of its rise "
            f"of {lost:.3f})",
        ),
    )
    forest = {f"B: rank {rank} above full": gap for rank, gap in less.items()}
    forest |= {f"A: full above rank {rank}": gap for rank, gap in kept.items()}
    return Finding(
        parts,
        {
            "b_above_full": {str(r): interval_of(gap.interval()) for r, gap in less.items()},
            "a_full_above": {str(r): interval_of(gap.interval()) for r, gap in kept.items()},
            "a_rise": {name: interval_of(each.interval()) for name, each in rise.items()},
            "arms": {arm.name: arm.summary() for arm in (full, *found.values())},
        },
        note="Rise of the loss on A: "
        + ", ".join(f"{name} {each}" for name, each in rise.items())
        + ". A weaker learner forgets less trivially; N6 compares at equal learning.",
        plot={
            "forest": {name: forest_row(gap) for name, gap in forest.items()},
            "x": "difference of the loss, nats",
        },
        seeds=lab.seeds,
        diverged=diverged_in((full, *found.values())),
    )
