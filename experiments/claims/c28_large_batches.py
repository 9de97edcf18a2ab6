"""C28: large batches hurt LoRA more than full fine-tuning."""

from lab.batches import BATCHES, by_batch, gaps, growth
from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import contrast, difference, diverged_in, interval_of
from lab.protocol import MARGIN
from lab.verdicts import judge_effect, judge_equal

CLAIM = Claim(
    id="C28",
    title="Large batches hurt LoRA more than full fine-tuning, at any rank",
    source="LoRA Without Regret, 2025",
    published="the gap to full fine-tuning grows with the batch, independent of rank; it is small at batch 32 (10,000 examples, one pass; figures without numbers)",
    expected="S, one pass over 2,048 sentences in batches of 8 and of 128: LoRA's loss above that of full fine-tuning of the linear layers grows by a tenth of what full gains at batch 8, or more, at rank 8; and the gaps of ranks 8 and 64 are equal to that tenth at both batches",
    kind="trained",
    minutes=12,
    models="S",
    regime="one pass: 256 steps of 8 or 16 of 128; each arm at its own best rate",
    distance="2,048 short sentences and width 160; ranks to 64; batch 512 would be 4 steps",
    limits={"share": MARGIN},
)


def run(lab):
    arms = by_batch(lab)
    grows = {name: contrast(growth(arms, name)) for name in ("r=8", "r=64")}
    apart = {b: difference(arms["r=8", b], arms["r=64", b]) for b in (BATCHES[0], BATCHES[-1])}
    margin = CLAIM.limits["share"] * arms["full", BATCHES[0]].gain().value
    gap = gaps(arms, tuple(grows))
    parts = (
        Part(
            "the gap grows with the batch",
            "effect",
            judge_effect(grows["r=8"], margin),
            f"rank 8: the gap grows by {grows['r=8']} nats from batch 8 to 128 "
            f"(what matters: {margin:.3f})",
        ),
        Part(
            "at rank 64 as at rank 8",
            "equal",
            judge_all([judge_equal(one, margin) for one in apart.values()]),
            "rank 8 less rank 64: " + ", ".join(f"{one} at {b}" for b, one in apart.items()),
        ),
    )
    return Finding(
        parts,
        {
            "arms": {arm.name: arm.summary() for arm in arms.values()},
            "gap": {
                name: {str(b): interval_of(one.interval()) for b, one in row.items()}
                for name, row in gap.items()
            },
            "r8_less_r64": {str(b): interval_of(one.interval()) for b, one in apart.items()},
            "growth": {name: interval_of(one.interval()) for name, one in grows.items()},
        },
        note="With one pass a larger batch has fewer steps; N3 has batches at an equal number.",
        plot={
            "lines": {
                name: [[b, *interval_of(one.interval())] for b, one in row.items()]
                for name, row in gap.items()
            },
            "x": "sentences a batch, one pass",
            "y": "loss above full fine-tuning, nats",
            "log": "x",
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms.values()),
    )
