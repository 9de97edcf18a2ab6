"""C33: DoRA is better than LoRA, most at low rank."""

from lab.claim import Claim, Finding, Part
from lab.contrast import difference, forest_row, interval_of
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="C33",
    title="DoRA ends lower than LoRA at ranks 1 and 4",
    source="DoRA (arXiv 2402.09353), commonsense reasoning",
    published="LLaMA-7B, average of 8 tasks: 61.9 against 39.5 at rank 4, 78.4 against 76.3 at rank 32; LoRA at one rate for all ranks, DoRA at a lower one",
    expected="S, all linear layers, both at their own best rates: test loss of DoRA below LoRA's by a tenth of its gain or more, at rank 1 and at rank 4",
    kind="trained",
    minutes=4,
    models="S",
    regime="100 steps of 16 sentences, equal steps; over ranks see N11",
    distance="width 160, loss on sentences; the paper has 7B and accuracies after an epoch of 170,000 examples",
    limits={"share": MARGIN},
)
RANKS = (1, 4)


def run(lab):
    parts, forest, figures, diverged = [], {}, {}, ()
    for rank in RANKS:
        lora = lab.arm(f"LoRA r={rank}", S.with_(**{"lora.rank": rank}))
        dora = lab.arm(f"DoRA r={rank}", lora.setting.with_(**{"lora.dora": True}))
        # What is left of DoRA where LoRA's rate is taken over.
        same = lab.fixed(f"DoRA r={rank} at LoRA's rate", dora.setting, lora.rate)
        gain, whole = difference(lora, dora), lora.gain().value
        parts.append(
            Part(
                f"rank {rank}",
                "effect",
                judge_effect(gain, CLAIM.limits["share"] * whole),
                f"rank {rank}: {gain} nats better ({gain.value / whole:.1%} of LoRA's gain)",
            )
        )
        for arm in (lora, dora, same):
            figures[arm.name] = arm.summary()
            diverged += arm.diverged
        figures[f"gain at rank {rank}"] = interval_of(gain.interval())
        forest[f"rank {rank}"] = forest_row(gain)
    return Finding(
        tuple(parts),
        figures,
        plot={"forest": forest, "x": "LoRA's loss less DoRA's, nats"},
        seeds=lab.seeds,
        diverged=diverged,
    )
