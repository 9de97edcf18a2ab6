"""C27: a larger rate for b than for a speeds learning."""

import numpy as np

from lab import arms
from lab.protocol import Claim, Finding, Reason, compare, interval_of, shown, with_
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="C27",
    title="LoRA+: a larger rate for b speeds learning",
    source="LoRA+ (arXiv 2402.12354)",
    published="1-2 % better and up to twice as fast; ratio 16 advised",
    expected="S on domain B, rank 8, rate of a tuned for each ratio: best ratio above 1 (lower test loss than ratio 1) and at most 0.7 of the steps to LoRA's final training loss",
    kind="trained",
    tolerance={"nats": 0.005, "steps": 0.7},
    version=2,  # the share of steps counts the ten that the first mean is of
)
RATIOS = (1, 4, 16)
RATES = (1e-3, 3.16e-3, 1e-2)
WINDOW = 10  # steps that a training loss is the mean of


def width(lab) -> Reason:
    """Whether ratio 4 gains more, the wider the model: S of width 64, 96 and 128, one seed, each
    arm at its own best rate.
    """
    gains = {}
    for size in (64, 96, 128):
        one, four = (
            arms.lora_arm(
                lab,
                8,
                name=f"ratio {r}, width {size}",
                rates=RATES,
                seeds=(0,),
                width=size,
                **{"optim.lora_plus_ratio": float(r)},
            )
            for r in (1, 4)
        )
        gains[size] = compare(one, four)[0]
    values = [gain.value for gain in gains.values()]
    return Reason(
        (
            "LoRA+ argues from wide layers, where one rate for both factors leaves b behind, and S "
            "is 128 wide; the gain of ratio 4 on ratio 1 should rise from width 64 over 96 to 128"
        ),
        "one seed: " + ", ".join(f"width {size}: {shown(gain, 4)}" for size, gain in gains.items()),
        values == sorted(values),
        {"gain_of_ratio_4": {str(size): interval_of(gain) for size, gain in gains.items()}},
    )


def run(lab):
    found = {
        ratio: arms.lora_arm(
            lab,
            8,
            name=f"ratio {ratio}",
            rates=arms.LORA_RATES if ratio == 1 else RATES,
            **{"optim.lora_plus_ratio": float(ratio)},
        )
        for ratio in RATIOS
    }
    loss = {ratio: arm.mean() for ratio, arm in found.items()}
    best = min((r for r in RATIOS if r > 1), key=loss.__getitem__)
    gain, each = compare(found[1], found[best])
    smooth = {ratio: _smooth(arm) for ratio, arm in found.items()}
    reached = np.flatnonzero(smooth[best] <= smooth[1][-1])
    share = float((reached[0] + WINDOW) / (len(smooth[1]) + WINDOW - 1)) if len(reached) else 1.0
    reason = width(lab)
    effect = judge_effect(each, gain, tolerance=CLAIM.tolerance["nats"])
    fixed = [
        lab.fixed(
            f"fixed rate, ratio {r}",
            with_(found[1].runs[0].config, **{"optim.lora_plus_ratio": float(r)}),
        )
        for r in RATIOS
    ]
    return Finding(
        "reproduced"
        if effect == "reproduced" and share <= CLAIM.tolerance["steps"]
        else "not reproduced"
        if effect == "not reproduced"
        else "inconclusive",
        f"best ratio {best}: {shown(gain)} nats better than 1, {share:.0%} of the steps",
        {
            "loss": loss,
            "gain": interval_of(gain),
            "share_of_steps": share,
            "at_loras_rate": {
                str(r): (a.mean() if any(run.result for run in a.runs) else None)
                for r, a in zip(RATIOS, fixed)
            },
            "arms": {a.name: a.summary() for a in found.values()},
            "reason": reason.entry(),
        },
        note="At LoRA's own best rate for a, raising b's alone gives "
        + ", ".join(
            f"{r}: {a.mean():.3f}"
            for r, a in zip(RATIOS, fixed)
            if any(run.result for run in a.runs)
        )
        + "."
        + reason.text,
        plot={
            "x": "step",
            "y": "training loss (mean of 10 steps), nats",
            "lines": {
                f"ratio {r}": [[n + WINDOW, float(v)] for n, v in enumerate(row)]
                for r, row in smooth.items()
            },
        },
        seeds=lab.seeds,
        diverged=tuple(d for arm in (*found.values(), *fixed) for d in arm.diverged),
    )


def _smooth(arm) -> np.ndarray:
    """Training loss, mean over seeds and `WINDOW` steps."""
    rows = np.mean([[loss for _, loss in run.trace()] for run in arm.runs if run.result], axis=0)
    return np.convolve(rows, np.ones(WINDOW) / WINDOW, "valid")
