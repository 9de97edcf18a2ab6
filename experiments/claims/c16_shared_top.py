"""C16: adapters of rank 8 and 64 share their top direction and little else."""

from statistics import median

import numpy as np

from lab.claim import Claim, Finding, Part, Reason
from lab.contrast import OverSeeds, forest_row, interval_of
from lab.inside import over_pairs
from lab.setting import Setting
from lab.verdicts import judge_effect
from lora_jax.analysis import input_directions, overlap_beyond_chance, phi, random_phi

CLAIM = Claim(
    id="C16",
    title="Rank 8 and rank 64 share their top direction, and little else",
    source="LoRA, section 7.2, Figure 3",
    published="phi above 0.5 at dimension 1, for query and value of layer 48 of GPT-3; no overlap in the other directions",
    expected="of factors A of different seeds on one base, median over the layers: phi(1, 1) at least 0.5, for query and for value; and beyond chance, what the first 8 directions share is below half of what the first shares",
    kind="trained",
    minutes=3,
    models="S, one pretraining",
    regime="100 steps of 16 sentences on q+v, alpha / rank 2 at both ranks, each at its own best rate; all 20 pairs of different seeds",
    distance="160 inputs in place of 12,288, so that chance alone gives 0.05 for 8 directions; four layers of four in place of four of 96",
    limits={"phi": 0.5, "least": 0.05},
)
# One base: one space for the directions of all seeds.
BASE = Setting(bases=1).with_(**{"lora.targets": "query+value"})
NAMES = ("q", "v")


def directions(lab, arm, of=lambda m: input_directions(m.a)):
    """{name: [layers of (in, r)]} of every run that did not diverge: the directions of its A."""
    kept = [run for run in arm.runs if run.result is not None]
    return [{name: [of(m) for m in lab.updates(run, (name,))] for name in NAMES} for run in kept]


def shared(narrow, wide, name: str, count: int) -> OverSeeds:
    """Of the first `count` directions, beyond chance, median over layers; for each seed of rank 8
    the mean over the other seeds of rank 64.
    """

    def figure(one: int, other: int) -> float:
        pairs = zip(narrow[one][name], wide[other][name])
        return median(
            overlap_beyond_chance(a[:, :count], b[:, :count]).share[-1, -1] for a, b in pairs
        )

    return over_pairs(min(len(narrow), len(wide)), figure)


def of_update(lab, arms) -> Reason:
    """Whether the random start of A hides a top direction that the whole updates share."""
    one, other = (directions(lab, arm, lambda m: m.update.u) for arm in arms)
    found = {name: shared(one, other, name, 1) for name in NAMES}
    return Reason(
        "A keeps much of its random start, in which there is no shared direction; of the whole "
        "update, A times B, the first directions should share half or more, in q and in v",
        "beyond chance they share " + ", ".join(f"{row} ({name})" for name, row in found.items()),
        all(row.interval().low > 0 and row.value >= CLAIM.limits["phi"] for row in found.values()),
        {name: interval_of(row.interval()) for name, row in found.items()},
    )


def run(lab):
    narrow_arm = lab.arm("rank 8", BASE)
    wide_arm = lab.arm("rank 64", BASE.with_(**{"lora.rank": 64, "lora.alpha": 128.0}))
    narrow, wide = directions(lab, narrow_arm), directions(lab, wide_arm)
    inputs = narrow[0]["q"][0].shape[0]
    chance = random_phi(1, 1, inputs)
    first = {name: shared(narrow, wide, name, 1) for name in NAMES}
    eight = {name: shared(narrow, wide, name, 8) for name in NAMES}
    rest = OverSeeds(
        tuple(
            float(np.mean([first[n].by_seed[i] / 2 - eight[n].by_seed[i] for n in NAMES]))
            for i in range(first["q"].seeds)
        )
    )
    least = (CLAIM.limits["phi"] - chance) / (1 - chance)
    parts = [
        Part(
            f"the top direction, {name}",
            "effect",
            judge_effect(first[name], least),
            f"{name}: the first direction shares {first[name]} beyond chance (phi {chance:.3f})",
        )
        for name in NAMES
    ]
    parts.append(
        Part(
            "little else",
            "effect",
            judge_effect(rest, CLAIM.limits["least"]),
            f"half of that lies {rest} above what the first 8 share (q {eight['q']}, v "
            f"{eight['v']})",
        )
    )
    table = {f"{name}, first": first[name] for name in NAMES}
    table |= {f"{name}, first 8": eight[name] for name in NAMES}
    held = all(part.verdict == "reproduced" for part in parts[:2])
    reason = None if held else of_update(lab, (narrow_arm, wide_arm))
    middle = len(narrow[0]["q"]) // 2
    return Finding(
        tuple(parts),
        {
            "beyond_chance": {name: interval_of(row.interval()) for name, row in table.items()},
            "half_of_first_above_8": interval_of(rest.interval()),
            "chance": {"1": chance, "8": random_phi(8, 8, inputs)},
            "phi_of_seeds_0_and_1": {
                name: np.round(phi(narrow[0][name][middle], wide[1][name][middle]), 3).tolist()
                for name in NAMES
            },
            "arms": {arm.name: arm.summary() for arm in (narrow_arm, wide_arm)},
            "reason": None if reason is None else reason.entry(),
        },
        note="" if reason is None else reason.text,
        plot={
            "forest": {name: forest_row(row) for name, row in table.items()},
            "x": "shared beyond chance",
            "published": {"at least, first direction": CLAIM.limits["phi"]},
        },
        seeds=lab.seeds,
        diverged=narrow_arm.diverged + wide_arm.diverged,
    )
