"""C39: what full fine-tuning changes is of high rank."""

import numpy as np

from lab import arms
from lab.inside import matrices
from lab.protocol import Claim, Finding, with_
from lora_jax.analysis import rank_for

CLAIM = Claim(
    id="C39",
    title="Full fine-tuning's updates are of high rank",
    source="LoRA Learns Less and Forgets Less (arXiv 2405.09673), section 5",
    published="90 % of the variance needs more than 1500 of 4096 directions (37 %); more with tokens; MLP above attention",
    expected="S on domain B at its best rate: more than 10 % of the directions, growing with steps, MLP above attention",
    kind="trained",
    tolerance={"share": 0.1},
)
STEPS = (25, 50, 100)


def run(lab):
    arm = arms.full_arm(lab)
    ranks = {}
    for steps in STEPS:
        rows = [
            (m.path.split("/")[1], int(rank_for(m.update.s)) / min(m.weight.shape))
            for run in arm.runs
            if run.result
            for m in matrices(lab.run(with_(run.config, **{"train.total_steps": steps})))
        ]
        ranks[steps] = {
            part: float(np.mean([share for where, share in rows if where == part]))
            for part in ("attn", "mlp")
        }
    last = ranks[STEPS[-1]]
    overall = (4 * last["attn"] + 3 * last["mlp"]) / 7
    means = [(4 * r["attn"] + 3 * r["mlp"]) / 7 for r in ranks.values()]
    parts = [overall > CLAIM.tolerance["share"], means == sorted(means), last["mlp"] > last["attn"]]
    return Finding(
        "reproduced" if all(parts) else "inconclusive" if parts[0] else "not reproduced",
        (
            f"{overall:.0%} of the directions for 90 % (attention {last['attn']:.0%}, MLP "
            f"{last['mlp']:.0%}); at {', '.join(map(str, STEPS))} steps "
            f"{', '.join(f'{m:.0%}' for m in means)}"
        ),
        {
            "share_of_directions": {str(s): r for s, r in ranks.items()},
            "high_rank": parts[0],
            "grows": parts[1],
            "mlp_above_attention": parts[2],
        },
        note="Of the three parts: high rank "
        + ("yes" if parts[0] else "no")
        + ", grows with steps "
        + ("yes" if parts[1] else "no")
        + ", MLP above attention "
        + ("yes" if parts[2] else "no")
        + ".",
        plot={
            "x": "step",
            "y": "share of directions for 90 %",
            "lines": {part: [[s, r[part]] for s, r in ranks.items()] for part in ("attn", "mlp")},
        },
        seeds=lab.seeds,
        diverged=arm.diverged,
    )
