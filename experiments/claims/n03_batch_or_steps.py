"""N3: whether it is the size of the batch that widens LoRA's gap, or the number of steps."""

import numpy as np

from lab.batches import BATCHES, by_batch, gap, one_pass
from lab.claim import Claim, Finding, Part
from lab.contrast import contrast, diverged_in, interval_of
from lab.protocol import MARGIN
from lab.setting import FULL
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="N3",
    title="LoRA's gap to full fine-tuning grows with the logarithm of the batch, in one pass and at equal steps",
    source="LoRA Without Regret, 2025, and Beware of the Batch Size (arXiv 2602.09492)",
    published="the gap grows with the batch, independent of rank",
    expected="S, batches 8, 32, 128, LoRA less full fine-tuning of the linear layers: over the four doublings, a line in log2 batch rises by a tenth of what full gains, or more, in one pass over 2,048 sentences at rank 8 and at rank 64, and at rank 8 in 16 steps of each batch",
    kind="trained",
    minutes=2,
    models="S",
    regime="one pass (256, 64 and 16 steps) and 16 steps; each arm at its own best rate",
    distance="2,048 short sentences, width 160, ranks to 64, no batch of 512 (4 steps)",
    limits={"share": MARGIN},
)
STEPS = 16


def slope(arms, name):
    """Terms of the rise of the gap over all doublings, by a line through every batch."""
    logs = np.log2(BATCHES)
    parts = (logs - logs.mean()) / ((logs - logs.mean()) ** 2).sum() * (logs[-1] - logs[0])
    return [
        (float(part) * weight, arm)
        for part, batch in zip(parts, BATCHES)
        for weight, arm in gap(arms, name, batch)
    ]


def equal_steps(lab, arms):
    """Full fine-tuning and rank 8 in 16 steps of each batch; that of the largest is one pass."""
    found = {(name, BATCHES[-1]): arms[name, BATCHES[-1]] for name in ("full", "r=8")}
    for batch in BATCHES[:-1]:
        for name, changes in (("full", FULL), ("r=8", {})):
            setting = one_pass(batch, **changes).with_(**{"train.total_steps": STEPS})
            found[name, batch] = lab.arm(f"{name}, batch {batch}, {STEPS} steps", setting)
    return found


def run(lab):
    arms = by_batch(lab)
    steps = equal_steps(lab, arms)
    tested = {
        "one pass, rank 8": (arms, "r=8"),
        "one pass, rank 64": (arms, "r=64"),
        f"{STEPS} steps, rank 8": (steps, "r=8"),
    }
    parts, figures, lines = [], {}, {}
    for says, (of, name) in tested.items():
        rise = contrast(slope(of, name))
        margin = CLAIM.limits["share"] * of["full", BATCHES[-1]].gain().value
        parts.append(
            Part(
                says,
                "effect",
                judge_effect(rise, margin),
                f"{says}: {rise} nats (what matters: {margin:.3f})",
            )
        )
        figures[says] = {"rise": interval_of(rise.interval()), "margin": margin}
        lines[says] = [
            [batch, *interval_of(contrast(gap(of, name, batch)).interval())] for batch in BATCHES
        ]
    every = {arm.name: arm for arm in (*arms.values(), *steps.values())}
    return Finding(
        tuple(parts),
        {"arms": {name: arm.summary() for name, arm in every.items()}, "rises": figures},
        plot={
            "lines": lines,
            "x": "sentences a batch",
            "y": "loss above full fine-tuning, nats",
            "log": "x",
        },
        seeds=lab.seeds,
        diverged=diverged_in(every.values()),
    )
