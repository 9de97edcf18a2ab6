"""C25: under alpha / r the best rate does not move with rank, and early curves coincide."""

import numpy as np

from lab import arms
from lab.protocol import Claim, Finding, interval_of
from lora_jax.analysis import best_rate

CLAIM = Claim(
    id="C25",
    title="Under alpha / r the best rate does not move with rank",
    source="LoRA Without Regret, 2025",
    published="best rate within a factor 2 from rank 4 to 512, rank 1 lower; equal early curves",
    expected="S on domain B, alpha 16: best rates of ranks 4, 16, 64 within a factor 2; at one rate, losses of ranks 16 and 64 at step 20 differ by less than 5 % of the fall so far",
    kind="trained",
    tolerance={"factor": 2.0, "early": 0.05},
)
RANKS = (1, 4, 16, 64)


def run(lab):
    found = {r: arms.lora_arm(lab, r) for r in RANKS}
    fits = {r: best_rate(*zip(*arm.tuning)) for r, arm in found.items()}
    rates = [fits[r].rate.value for r in RANKS[1:]]
    factor = max(rates) / min(rates)
    curves = {}
    for r in (16, 64):
        runs = [lab.run(_at_rate(run.config, found[16].rate)) for run in found[r].runs]
        curves[r] = np.mean(
            [[loss for _, loss in run.trace()] for run in runs if run.result], axis=0
        )
    early = abs(curves[16][15:20].mean() - curves[64][15:20].mean())
    fall = curves[16][0] - curves[16][15:20].mean()
    share = float(early / fall)
    close = [factor <= CLAIM.tolerance["factor"], share < CLAIM.tolerance["early"]]
    return Finding(
        "reproduced"
        if all(close)
        else "not reproduced"
        if factor > 2 * CLAIM.tolerance["factor"] or share > 2 * CLAIM.tolerance["early"]
        else "inconclusive",
        "best rates "
        + ", ".join(f"r={r} {fits[r].rate.value:.1e}" for r in RANKS)
        + f"; ranks 16 and 64 differ by {share:.1%} of the fall at step 20",
        {
            "best": {str(r): interval_of(f.rate) for r, f in fits.items()},
            "factor": factor,
            "early_difference": share,
            "arms": {a.name: a.summary() for a in found.values()},
        },
        note="Best rates are vertices of parabolas over a grid of factor 3.2 with one seed: a factor of 2 is about as fine as that can tell.",
        plot={
            "x": "step",
            "y": "training loss, nats",
            "lines": {
                f"r={r}": [[n + 1, float(v)] for n, v in enumerate(c[:50])]
                for r, c in curves.items()
            },
        },
        seeds=lab.seeds,
        diverged=tuple(d for arm in found.values() for d in arm.diverged),
    )


def _at_rate(config, rate):
    from lab.protocol import with_

    return with_(config, **{"optim.learning_rate": rate})
