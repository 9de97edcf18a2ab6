"""N7: intruder dimensions cause forgetting."""

from typing import Any

import numpy as np

from lab.changes import Moved
from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import diverged_in, forest_row, interval_of, of_losses
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect
from lora_jax.analysis import shrink_controls

CLAIM = Claim(
    id="N7",
    title="Shrinking intruder dimensions brings back more than changes of equal norm",
    source="LoRA vs Full Fine-tuning (arXiv 2410.21228), section 5",
    published="scaling intruders down (by 0.75 and less) lowers the loss on the pretraining distribution at little cost to the task",
    expected="intruders times 0.75 in every matrix give the loss on A lower than shrinking the other strong directions, and than shrinking the whole update, both by as much in norm; each by a tenth of what the shrunk intruders bring back",
    kind="trained",
    minutes=5,
    models="S",
    regime="all linear layers at rank 1 and at rank 16, 100 steps of 16 sentences, own best rate; top 10 directions, cosine below 0.5",
    distance="the paper has no control of equal norm",
    limits={"keep": 0.75, "share": MARGIN},
)
PATHS = ("q", "k", "v", "o", "gate", "up", "down")
KINDS = ("intruders", "others", "update")


def changes(lab, run) -> dict[str, Moved]:
    """The three ways for a whole run."""
    layers: dict[str, list] = {}
    for m in lab.updates(run, PATHS):
        made = shrink_controls(m.weight, m.tuned, keep=CLAIM.limits["keep"])
        layers.setdefault(m.path, []).append({kind: made[kind].weight - m.tuned for kind in KINDS})
    stacked = lambda kind: {p: np.stack([row[kind] for row in rows]) for p, rows in layers.items()}
    keep = CLAIM.limits["keep"]
    return {kind: Moved(f"{kind}-times-{keep:g}", stacked(kind)) for kind in KINDS}


def measured(lab, arm) -> dict[str, Any]:
    """Contrasts of the loss on A (and on B) of an arm under the three ways."""
    asked = [("A", "tuned"), ("B", "tuned"), *(("A", kind) for kind in KINDS), ("B", "intruders")]
    found: dict[tuple[str, str], list[np.ndarray]] = {pair: [] for pair in asked}
    weights = {}
    for run in arm.runs:
        if run.result is not None:
            moved = changes(lab, run)
            for domain, kind in asked:
                losses, weights[domain] = lab.losses(run, domain, moved.get(kind))
                found[domain, kind].append(losses)
    tables = {pair: np.stack(rows) for pair, rows in found.items()}
    gap = lambda domain, one, other: of_losses(
        ((1, tables[domain, one]), (-1, tables[domain, other])), weights[domain]
    )
    return {
        "brought back on A": gap("A", "tuned", "intruders"),
        "others above intruders on A": gap("A", "others", "intruders"),
        "update above intruders on A": gap("A", "update", "intruders"),
        "cost on B": gap("B", "intruders", "tuned"),
    }


def run(lab):
    arms = {rank: lab.arm(f"rank {rank}", S.with_(**{"lora.rank": rank})) for rank in (1, 16)}
    table = {rank: measured(lab, arm) for rank, arm in arms.items()}
    parts = []
    for rank, found in table.items():
        smallest = max(MARGIN * found["brought back on A"].value, 0.0)
        controls = [found[f"{kind} above intruders on A"] for kind in ("others", "update")]
        parts.append(
            Part(
                f"rank {rank}: better than both controls",
                "effect",
                judge_all([judge_effect(gap, smallest) for gap in controls]),
                f"rank {rank}: shrunk intruders bring back {found['brought back on A']} nats on A, "
                f"{controls[0]} more than other directions and {controls[1]} more than the update",
            )
        )
    forest = {
        f"rank {rank}, {name}": gap for rank, rows in table.items() for name, gap in rows.items()
    }
    return Finding(
        tuple(parts),
        {
            "contrasts": {name: interval_of(gap.interval()) for name, gap in forest.items()},
            "arms": {arm.name: arm.summary() for arm in arms.values()},
        },
        note="Cost on B of the shrunk intruders: "
        + ", ".join(f"rank {rank} {rows['cost on B']}" for rank, rows in table.items())
        + ".",
        plot={
            "forest": {name: forest_row(gap) for name, gap in forest.items()},
            "x": "difference of the loss, nats",
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms.values()),
    )
