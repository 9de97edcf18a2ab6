"""C39: what full fine-tuning changes is of high rank."""

from math import log
from statistics import fmean

import numpy as np

from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import OverSeeds, interval_of
from lab.setting import FULL, S
from lab.verdicts import judge_effect
from lora_jax.analysis import rank_beside_gaussian

CLAIM = Claim(
    id="C39",
    title="Full fine-tuning's updates are of high rank, beyond what their shape makes",
    source="LoRA Learns Less and Forgets Less (arXiv 2405.09673), section 5",
    published="90 % of the variance needs more than 1500 of 4096 directions (37 %); more with tokens; MLP above attention",
    expected="90 % of an update's squares need more than a tenth of the directions, and a tenth of them fewer than Gaussian noise of its shape; 1.1 times as many after 100 steps as after 25; and in the MLP 1.05 times as many as in attention, both divided by what noise of their shape needs",
    kind="trained",
    minutes=2,
    models="S",
    regime="full fine-tuning of the linear layers at its best rate, 25, 50 and 100 steps of 16 sentences, one rate",
    distance="matrices of 160 x 160 and 160 x 480, a thousandth of the paper's tokens; rank and noise of the batches are not told apart",
    limits={"share": 0.1, "below_noise": 0.1, "grows": 1.1, "mlp": 1.05},
)
STEPS = (25, 50, 100)
PARTS = ("attn", "mlp")


def shares(lab, run) -> dict[str, float]:
    """Mean share of the directions over the matrices of attention and MLP, and the same of Gaussian
    noise of their shapes.
    """
    rows, layers = [], {}
    for m in lab.updates(run, ("q", "k", "v", "o", "gate", "up", "down")):
        layers.setdefault((m.path, m.weight.shape), []).append(m.update.s)
    for (path, shape), values in layers.items():
        found = rank_beside_gaussian(np.stack(values), shape, samples=8)
        side = min(shape)
        rows.append((path.split("/")[1], float(found.rank.mean()) / side, found.chance / side))
    of = lambda part: [row for row in rows if part in ("all", row[0])]
    return {part: fmean(share for _, share, _ in of(part)) for part in (*PARTS, "all")} | {
        f"{part} of noise": fmean(noise for _, _, noise in of(part)) for part in (*PARTS, "all")
    }


def run(lab):
    arm = lab.arm("full", S.with_(**FULL))
    table = {}
    for steps in STEPS:
        changed = S.with_(**FULL, **({} if steps == 100 else {"train.total_steps": steps}))
        runs = [lab.run(changed, seed, arm.rate, scored=False) for seed in arm.seeds]
        table[steps] = [shares(lab, run) for run in runs if run.result is not None]
    last = table[STEPS[-1]]
    each = lambda figure, rows=last: OverSeeds(tuple(map(figure, rows)))
    share = each(lambda row: row["all"])
    high = each(lambda row: row["all"] - CLAIM.limits["share"])
    signal = each(lambda row: row["all of noise"] - row["all"])
    grows = OverSeeds(tuple(log(b["all"] / a["all"]) for a, b in zip(table[STEPS[0]], last)))
    beyond = lambda row, part: log(row[part] / row[f"{part} of noise"])
    mlp = each(lambda row: beyond(row, "mlp") - beyond(row, "attn"))
    limits = CLAIM.limits
    parts = (
        Part(
            "high rank, and no noise",
            "effect",
            judge_all([judge_effect(high), judge_effect(signal, limits["below_noise"])]),
            f"{share} of the directions hold 90 %, noise needs {last[0]['all of noise']:.2f}",
        ),
        Part(
            "grows with steps",
            "effect",
            judge_effect(grows, log(limits["grows"])),
            f"natural log of the growth from {STEPS[0]} to {STEPS[-1]} steps {grows}",
        ),
        Part(
            "MLP above attention, beyond its shape",
            "effect",
            judge_effect(mlp, log(limits["mlp"])),
            f"natural log of MLP over attention, each over noise of its shape, {mlp}",
        ),
    )
    at = lambda rows, part: interval_of(each(lambda row: row[part], rows).interval())
    lines = {part: [[steps, *at(rows, part)] for steps, rows in table.items()] for part in PARTS}
    return Finding(
        parts,
        {
            "share": {str(steps): rows for steps, rows in table.items()},
            "growth": interval_of(grows.interval()),
            "mlp_over_attention": interval_of(mlp.interval()),
            "arm": arm.summary(),
        },
        note=(
            "Without dividing by noise of their shape, MLP over attention is "
            f"{fmean(r['mlp'] / r['attn'] for r in last):.2f}, of which shape alone makes "
            f"{last[0]['mlp of noise'] / last[0]['attn of noise']:.2f}."
        ),
        plot={
            "lines": lines,
            "x": "step",
            "y": "share of directions for 90 %",
            "published": {"Biderman et al.": 0.37}
            | {f"noise, {part}": last[0][f"{part} of noise"] for part in PARTS},
        },
        seeds=lab.seeds,
        diverged=arm.diverged,
    )
