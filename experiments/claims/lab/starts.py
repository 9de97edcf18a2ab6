"""First values of the factors on S: arms whose rate is tuned for the first steps."""

from __future__ import annotations

import numpy as np

from lab.contrast import Arm, OverSeeds
from lab.protocol import Bench
from lab.setting import Run, S, Setting

STEPS = 30
INITS = ("pissa", "olora", "lora_ga")
LORA = "kaiming"


def start(init: str) -> Setting:
    """S with factors of this start."""
    return S if init == LORA else S.with_(**{"lora.init": init})


def area(lab: Bench, run: Run, first: int = 1, last: int = STEPS) -> float:
    """The mean training loss over these steps."""
    return float(np.mean([loss for step, loss in lab.trace(run) if first <= step <= last]))


def early(lab: Bench) -> dict[str, Arm]:
    """LoRA and every start after 30 steps, at the rate of the least area under the training loss."""
    return {
        init: lab.arm(
            f"{init}, {STEPS} steps",
            start(init).with_(**{"train.total_steps": STEPS}),
            by=lambda run: area(lab, run),
        )
        for init in (LORA, *INITS)
    }


def ahead(lab: Bench, arms: dict[str, Arm], init: str, first: int = 1) -> OverSeeds:
    """By how much a start is below LoRA, mean of the training losses from a step on, of each seed.
    A run that diverged counts with the loss of the first step.
    """
    found = []
    for pair in zip(arms[LORA].runs, arms[init].runs):
        trained = [run for run in pair if run.result is not None]
        before = area(lab, trained[0], 1, 1) if trained else 0.0
        lora, other = (before if run.result is None else area(lab, run, first) for run in pair)
        found.append(lora - other)
    return OverSeeds(tuple(found))


def fall(lab: Bench, arms: dict[str, Arm], first: int = 1) -> float:
    """What LoRA's training loss had fallen by, on the mean of the steps from this one on."""
    runs = [run for run in arms[LORA].runs if run.result is not None]
    return float(np.mean([area(lab, r, 1, 1) - area(lab, r, first) for r in runs]))
