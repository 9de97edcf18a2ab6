"""N6: LoRA forgets less at equal learning."""

from statistics import fmean

import numpy as np

from lab.claim import Claim, Finding, Part
from lab.contrast import OverSeeds, interval_of
from lab.protocol import MARGIN
from lab.setting import FULL, S
from lab.verdicts import judge_effect
from lora_jax.analysis import forgetting_at
from lora_jax.analysis.curves import Kept

CLAIM = Claim(
    id="N6",
    title="LoRA forgets less at equal learning",
    source="LoRA Learns Less and Forgets Less (arXiv 2405.09673), section 4.3: the frontier of learning and forgetting",
    published="on code LoRA forgets less at the same HumanEval score; on mathematics both lie on one frontier",
    expected="where rank 1, or rank 16, and full fine-tuning of the linear layers have gained the same on B, four fifths of the most that both reach, full has raised the loss on A more, by a tenth of its rise; each by the rate that forgets least there; inconclusive where that is mostly the lowest one",
    kind="trained",
    minutes=20,
    models="S",
    regime="three rates of factor 2 around the best one (about 0.4, 0.8 and 1.6 of LoRA's at rank 1, 0.35, 0.7 and 1.4 of full fine-tuning's), losses after 50 and 100 steps of 16 sentences, linear in between",
    distance="one pair of near domains; Biderman et al. compare checkpoints of one rate",
    limits={"share": MARGIN, "level": 0.8},
)
STEPS = (50, 100)
ARMS = {
    "rank 1": ({"lora.rank": 1}, (1e-3, 2e-3, 4e-3)),
    "rank 16": ({"lora.rank": 16}, (1e-3, 2e-3, 4e-3)),
    "full": (FULL, (2.5e-4, 5e-4, 1e-3)),
    "full with decay": ({**FULL, "optim.weight_decay": 0.1}, (2.5e-4, 5e-4, 1e-3)),
}


def curves(lab, name: str, seed: int) -> list[list[Kept]]:
    """For each rate, from before training on: the loss on B and the rise of that on A."""
    changes, rates = ARMS[name]
    mean = lambda found: float(found[0] @ found[1] / found[1].sum())
    new, old = lab.untuned(S, seed), mean(lab.losses((S, seed), "A", None))
    found = []
    for rate in rates:
        points = [Kept(name, 0, mean(new), 0.0)]
        for steps in STEPS:
            run = lab.run(
                S.with_(**changes, **{"train.total_steps": steps}), seed, rate, scored=False
            )
            if run.result is not None:
                learnt, kept = (mean(lab.losses(run, domain, None)) for domain in "BA")
                points.append(Kept(name, steps, learnt, kept - old))
        found.append(points)
    return found


def least(rows: list[list[Kept]], level: float) -> tuple[float, bool]:
    """The smallest rise on A of all rates where the loss on B has come down to the level, infinite
    where none has; and whether it is that of the lowest rate: a lower one may forget less still.
    """
    rises = [np.inf if r is None else r for r in (forgetting_at(rate, level) for rate in rows)]
    return min(rises), int(np.argmin(rises)) == 0


def run(lab):
    table = {name: [curves(lab, name, seed) for seed in lab.seeds] for name in ARMS}
    best = lambda rows: min(point.new_loss for points in rows for point in points)

    def compare(name: str) -> tuple[OverSeeds, OverSeeds, int]:
        """(rise under full, full above the arm) at the level of each seed, and in how many seeds
        the lowest rate of either forgets least.
        """
        rises, open_ends = [], 0
        for one, full in zip(table[name], table["full"]):
            start = one[0][0].new_loss
            level = start - CLAIM.limits["level"] * (start - max(best(one), best(full)))
            (rise, is_lowest), (rise_full, full_is_lowest) = least(one, level), least(full, level)
            rises.append((rise, rise_full))
            open_ends += is_lowest or full_is_lowest
        return (
            OverSeeds(tuple(full for _, full in rises)),
            OverSeeds(tuple(full - one for one, full in rises)),
            open_ends,
        )

    found = {name: compare(name) for name in ARMS if name != "full"}
    parts = tuple(
        Part(
            f"{name} forgets less",
            "effect",
            "inconclusive"
            if 2 * found[name][2] > len(lab.seeds)
            else judge_effect(found[name][1], max(MARGIN * found[name][0].value, 0.0)),
            f"at equal learning A rises by {found[name][0]} nats under full, {found[name][1]} "
            f"more than under {name}; the lowest rate forgets least under {found[name][2]} of "
            f"{len(lab.seeds)} seeds",
        )
        for name in ("rank 1", "rank 16")
    )
    every = {name: [row for rows in of for row in rows] for name, of in table.items()}
    lines = {  # mean over seeds of every rate and step
        f"{name}, {rate:g}": [
            [fmean(rows[place][n].new_loss for rows in table[name]),
             fmean(rows[place][n].old_rise for rows in table[name])]
            for n in range(min(len(rows[place]) for rows in table[name]))
        ]
        for name in ("rank 1", "rank 16", "full")
        for place, rate in enumerate(ARMS[name][1])
    }  # fmt: skip
    return Finding(
        parts,
        {
            "full_above": {
                name: interval_of(gap.interval()) for name, (_, gap, _) in found.items()
            },
            "by_seed": {name: gap.by_seed for name, (_, gap, _) in found.items()},
            "points": {
                name: [
                    [point.step, point.new_loss, point.old_rise] for row in rows for point in row
                ]
                for name, rows in every.items()
            },
        },
        note=(
            "Full fine-tuning with a decay of 0.1 towards 0: full without it rises "
            f"{found['full with decay'][1]} nats more."
        ),
        plot={"lines": lines, "x": "loss on B, nats", "y": "rise of the loss on A, nats"},
        seeds=lab.seeds,
    )
