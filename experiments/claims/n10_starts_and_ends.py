"""N10: what better starts gain over the first steps, and what is left of it at the end."""

import numpy as np

from lab import starts
from lab.claim import Claim, Finding, Part
from lab.contrast import difference, diverged_in, forest_row, interval_of
from lab.protocol import MARGIN
from lab.starts import INITS, LORA, STEPS
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="N10",
    title="PiSSA, OLoRA and LoRA-GA have a smaller area under the loss to step 30, and end lower",
    source="PiSSA (2404.02948), OLoRA (2406.01775), LoRA-GA (2407.05000), with rates tuned twice",
    published="faster convergence of all three, and better final scores (PiSSA 77.8 and LoRA 75.1 on GSM8K with Gemma-7B; LoRA-GA 53.6 and 42.1 with Llama-2-7B)",
    expected="S, rank 8: with rates tuned for it, mean training loss of the steps to 30 below LoRA's in all five seeds, and by a tenth of LoRA's fall or more; with rates tuned for the end, test loss after 100 steps below LoRA's by a tenth of its gain or more",
    kind="trained",
    minutes=5,
    models="S",
    regime="30 and 100 steps of 16 sentences at a constant rate without warm-up",
    distance="width 160, pretrained for minutes; LoRA-One is not in the library; the first 30 steps are those of C34",
    limits={"share": MARGIN},
)


def run(lab):
    early = starts.early(lab)
    late = {init: lab.arm(init, starts.start(init)) for init in (LORA, *INITS)}
    limit = CLAIM.limits["share"]
    margins = limit * starts.fall(lab, early), limit * late[LORA].gain().value
    parts, forest, figures = [], {}, {}
    for init in INITS:
        area, end = starts.ahead(lab, early, init), difference(late[LORA], late[init])
        verdict = judge_effect(area, margins[0])
        if verdict == "reproduced" and min(area.by_seed) <= 0:
            verdict = "inconclusive"
        found = {f"area to step {STEPS}": (area, verdict, margins[0])}
        found["end"] = end, judge_effect(end, margins[1]), margins[1]
        for name, (gain, judged, margin) in found.items():
            says = f"{init}, {name}"
            ours = f"{says}: {gain} nats (what matters: {margin:.3f})"
            parts.append(Part(says, "effect", judged, ours))
            figures[says] = interval_of(gain.interval())
            forest[says] = forest_row(gain, margin)
    arms = [*early.values(), *late.values()]
    return Finding(
        tuple(parts),
        {
            "gain": figures,
            "margins": {"area": margins[0], "end": margins[1]},
            "arms": {arm.name: arm.summary() for arm in arms},
            "training": {
                init: np.mean(
                    [[loss for _, loss in lab.trace(r)] for r in arm.runs if r.result], 0
                ).tolist()
                for init, arm in early.items()
                if any(run.result for run in arm.runs)
            },
        },
        plot={"forest": forest, "x": "LoRA's loss less the start's, nats"},
        seeds=lab.seeds,
        diverged=diverged_in(arms),
    )
