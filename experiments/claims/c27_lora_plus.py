"""C27: a larger rate for b than for a speeds learning."""

import numpy as np

from lab.claim import Claim, Finding, Part
from lab.contrast import OverSeeds, difference, interval_of, shown
from lab.rates import judge_range
from lab.setting import S
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="C27",
    title="LoRA+ with the advised ratio of 16 ends lower, and gets there sooner",
    source="LoRA+ (arXiv 2402.12354)",
    published="1-2 % better and up to twice as fast; ratio 16 advised",
    expected="S, rank 8 on all linear layers, the rate of a tuned for each ratio: test loss of ratio 16 below that of ratio 1, by a hundredth of its gain or more; the 90 % interval of the share of steps that it needs to ratio 1's final training loss below 0.7",
    kind="trained",
    minutes=2,
    models="S",
    regime="100 steps of 16 sentences, each ratio at its own best rate",
    distance="width 160, where the paper argues from wide layers; loss, where it has accuracy; other ratios and a second width are in N9",
    limits={"share": 0.01, "steps": 0.7},
)
RATIO = 16
WINDOW = 10  # steps that a training loss is the mean of


def smooth(lab, run) -> np.ndarray:
    """Training loss, mean over `WINDOW` steps."""
    losses = [loss for _, loss in lab.trace(run)]
    return np.convolve(losses, np.ones(WINDOW) / WINDOW, "valid")


def share_of_steps(lab, one, plus) -> OverSeeds:
    """Of each seed, the share of the steps after which `plus` is first at the final training loss
    of `one`; 1 if never. A pair of which one diverged counts as 1.
    """
    found = []
    for first, second in zip(one.runs, plus.runs):
        if first.result is None or second.result is None:
            found.append(1.0)
            continue
        goal, curve = smooth(lab, first)[-1], smooth(lab, second)
        reached = np.flatnonzero(curve <= goal)
        steps = len(curve) + WINDOW - 1
        found.append((reached[0] + WINDOW) / steps if len(reached) else 1.0)
    return OverSeeds(tuple(map(float, found)))


def run(lab):
    one = lab.arm("LoRA", S)
    plus = lab.arm(f"ratio {RATIO}", S.with_(**{"optim.lora_plus_ratio": float(RATIO)}))
    gain = difference(one, plus)
    whole = one.gain().value
    steps = share_of_steps(lab, one, plus)
    fixed = lab.fixed("at LoRA's rate", plus.setting, one.rate)
    interval = steps.interval(0.9)
    parts = (
        Part(
            "a lower loss",
            "effect",
            judge_effect(gain, CLAIM.limits["share"] * whole),
            f"ratio {RATIO} is {gain} nats better than 1 ({gain.value / whole:.1%} of the gain)",
        ),
        Part(
            "fewer steps",
            "effect",
            judge_range(interval, 0.0, CLAIM.limits["steps"]),
            f"{shown(interval, 2)} of the steps",
        ),
    )
    lines = {
        arm.name: [
            [n + WINDOW, float(x)]
            for n, x in enumerate(
                np.mean([smooth(lab, run) for run in arm.runs if run.result], axis=0)
            )
        ]
        for arm in (one, plus)
        if any(run.result for run in arm.runs)
    }
    return Finding(
        parts,
        {
            "arms": {arm.name: arm.summary() for arm in (one, plus, fixed)},
            "gain": interval_of(gain.interval()),
            "share_of_steps": {"interval_90": interval_of(interval), "by_seed": steps.by_seed},
            "at_loras_rate": interval_of(difference(one, fixed).interval()),
        },
        note=f"Tuned rates of a: {one.rate:.2g} at ratio 1, {plus.rate:.2g} at {RATIO}. At LoRA's own "
        f"best rate for a, raising b's alone gains {difference(one, fixed)}.",
        plot={"lines": lines, "x": "step", "y": "training loss (mean of 10 steps), nats"},
        seeds=lab.seeds,
        diverged=one.diverged + plus.diverged + fixed.diverged,
    )
