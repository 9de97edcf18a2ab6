"""N9: LoRA+ over its ratio, and over widths."""

import numpy as np

from lab.claim import Claim, Finding, Part
from lab.contrast import contrast, difference, diverged_in, interval_of
from lab.setting import S, Setting
from lab.small_model import SmallModel
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="N9",
    title="A rate for b of four times a's lowers the loss, and more so in a wider model",
    source="LoRA+ (arXiv 2402.12354), with a rate for each ratio",
    published="the best ratio is above 1 and grows with width (rate of a ~ 1 / width, of b ~ 1)",
    expected="S, rank 8 on all linear layers, the rate of a tuned for each ratio: a parabola in the logarithm of the ratio falls from 1 to 4 by half a hundredth of the gain or more, at width 160 over ratios 1, 2, 4, 8, 16; and by more than at width 64, over ratios 1, 4, 16",
    kind="trained",
    minutes=6,
    models="S of width 64 and 160",
    regime="100 steps of 16 sentences; each arm at its own best rate",
    distance="two widths, a factor of 2.5 apart; 256 needs three pretrainings of about 50 min",
    limits={"share": 0.005},
)
RATIOS = {160: (1, 2, 4, 8, 16), 64: (1, 4, 16)}
AT = np.log2(4)


def weights(ratios) -> np.ndarray:
    """What each arm's loss has for a part in fitted loss at ratio 1 minus fitted loss at 4."""
    logs = np.log2(ratios)
    powers = lambda x: np.array([1.0, x, x * x])
    fit = np.linalg.pinv(np.stack([powers(x) for x in logs]))
    return (powers(0.0) - powers(AT)) @ fit


def plot_of(arms):
    """The gain of each ratio on ratio 1."""
    gain = lambda width, ratio: difference(arms[width, 1], arms[width, ratio]).interval()
    lines = {
        f"width {width}": [[ratio, *interval_of(gain(width, ratio))] for ratio in ratios]
        for width, ratios in RATIOS.items()
    }
    axes = {"x": "rate of b over rate of a", "y": "gain on ratio 1, nats", "log": "x"}
    return {"lines": lines, **axes, "published": {"no gain": 0}}


def run(lab):
    arms, terms = {}, {}
    for width, ratios in RATIOS.items():
        base = S if width == 160 else Setting(SmallModel(width=width))
        for ratio in ratios:
            changes = {} if ratio == 1 else {"optim.lora_plus_ratio": float(ratio)}
            name = f"width {width}, ratio {ratio}"
            arms[width, ratio] = lab.arm(name, base.with_(**changes))
        parts = weights(ratios)
        terms[width] = [(float(w), arms[width, r]) for w, r in zip(parts, ratios)]
    falls = {width: contrast(row) for width, row in terms.items()}
    wider = contrast([*terms[160], *[(-w, arm) for w, arm in terms[64]]])
    gain = {width: arms[width, 1].gain().value for width in RATIOS}
    smallest = CLAIM.limits["share"] * gain[160]
    best = {
        width: min(ratios, key=lambda r: min(arms[width, r].tuning.values()))
        for width, ratios in RATIOS.items()
    }
    said = lambda found, width: f"{found} nats ({found.value / gain[width]:.1%} of the gain)"
    return Finding(
        (
            Part(
                "a fall from ratio 1 to 4",
                "effect",
                judge_effect(falls[160], smallest),
                f"width 160: {said(falls[160], 160)}",
            ),
            Part(
                "a larger fall at the larger width",
                "effect",
                judge_effect(wider, smallest),
                f"more than at width 64 by {said(wider, 160)}",
            ),
        ),
        {
            "arms": {arm.name: arm.summary() for arm in arms.values()},
            "fitted_fall": {str(w): interval_of(one.interval()) for w, one in falls.items()},
            "wider": interval_of(wider.interval()),
            "best_ratio_by_validation": {str(width): ratio for width, ratio in best.items()},
        },
        note="The best ratio by validation loss is "
        + ", ".join(f"{ratio} at width {width}" for width, ratio in best.items())
        + ". The fall is read off a parabola through all ratios at a place that was fixed before, "
        "not at the best one, whose luck would count as a gain.",
        plot=plot_of(arms),
        seeds=lab.seeds,
        diverged=diverged_in(arms.values()),
    )
