"""N11: how DoRA's gain on LoRA depends on rank."""

import numpy as np

from lab.claim import Claim, Finding, Part
from lab.contrast import contrast, difference, diverged_in, interval_of
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect, judge_not_worse

CLAIM = Claim(
    id="N11",
    title="DoRA's gain on LoRA falls with the logarithm of rank, and it is not worse at rank 16",
    source="DoRA (arXiv 2402.09353), with a rate for each arm",
    published="gains of 22.4, 37.2, 6.6, 2.1 and 11.0 points at ranks 4, 8, 16, 32 and 64; PEFT's table at equal rates has DoRA .469 and LoRA .478 at rank 32",
    expected="S, all linear layers, ranks 1, 4, 16, both at their own best rates: from rank 1 to 16 a line in log rank falls by a tenth of LoRA's gain or more; at rank 16 DoRA's loss is not above LoRA's by that tenth",
    kind="trained",
    minutes=2,
    models="S",
    regime="100 steps of 16 sentences, equal steps",
    distance="ranks to 16 of a width of 160; equal time is not tested (times of steps this short say nothing of large models); a real model (MiniLM) is left out: 8 arms of 9 min",
    limits={"share": MARGIN},
)
RANKS = (1, 4, 16)


def run(lab):
    lora = {r: lab.arm(f"LoRA r={r}", S.with_(**{"lora.rank": r})) for r in RANKS}
    dora = {
        r: lab.arm(f"DoRA r={r}", S.with_(**{"lora.rank": r, "lora.dora": True})) for r in RANKS
    }
    logs = np.log2(RANKS)
    line = (logs - logs.mean()) / ((logs - logs.mean()) ** 2).sum() * (logs[-1] - logs[0])
    falls = contrast(
        [
            (sign * float(weight), arm[rank])
            for weight, rank in zip(line, RANKS)
            for sign, arm in ((-1, lora), (1, dora))
        ]
    )
    gains = {rank: difference(lora[rank], dora[rank]) for rank in RANKS}
    behind = difference(dora[16], lora[16])
    margin = CLAIM.limits["share"] * lora[16].gain().value
    arms = [*lora.values(), *dora.values()]
    return Finding(
        (
            Part(
                "the gain falls with rank",
                "effect",
                judge_effect(falls, margin),
                f"from rank 1 to 16 the gain falls by {falls} nats (what matters: {margin:.3f})",
            ),
            Part(
                "not worse at rank 16",
                "not worse",
                judge_not_worse(behind, margin),
                f"at rank 16 {behind} behind LoRA",
            ),
        ),
        {
            "arms": {arm.name: arm.summary() for arm in arms},
            "gain": {str(rank): interval_of(one.interval()) for rank, one in gains.items()},
            "fall": interval_of(falls.interval()),
        },
        plot={
            "lines": {
                "LoRA less DoRA": [
                    [rank, *interval_of(one.interval())] for rank, one in gains.items()
                ]
            },
            "x": "rank",
            "y": "DoRA's gain on LoRA, nats",
            "log": "x",
            "published": {"no gain": 0},
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms),
    )
