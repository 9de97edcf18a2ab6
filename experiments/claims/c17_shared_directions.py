"""C17: two seeds share more directions in the query's update than in the value's."""

import numpy as np

from lab import arms
from lab.inside import matrices, starts
from lab.protocol import Claim, Finding, Reason, with_
from lora_jax.analysis import input_directions, phi, random_phi, shared_directions

CLAIM = Claim(
    id="C17",
    title="Two seeds share more directions in q than in v",
    source="LoRA, section 7.2, Figure 4",
    published="at rank 64, the query's update has a higher intrinsic rank than the value's, by what two seeds share",
    expected="S on domain B, rank 64 on q+v, seeds 0 and 1: leading sizes i with phi(i, i) above 5 times chance, at least as many for q as for v in most layers",
    kind="trained",
    tolerance={"above": 5.0},
)


def beyond_chance(one, two) -> dict[str, list[float]]:
    """Shared dimensions by layer: the squared overlap of the first 16 directions of two updates,
    minus chance.

    Unlike a count that stops at the first size that fails, it does not depend on the order of
    directions of about equal strength.
    """
    found = {"q": [], "v": []}
    for m, n in zip(matrices(one, ("q", "v")), matrices(two, ("q", "v"))):
        both = phi(m.update.u[:, :16], n.update.u[:, :16])[-1, -1]
        found[m.path.split("/")[-2]].append(
            float(16 * (both - random_phi(16, 16, m.weight.shape[0])))
        )
    return found


def longer(lab, runs) -> Reason:
    """Whether 100 steps are too few for the query: four times as many at a third of the rate."""
    long = [
        lab.run(with_(run.config, **{"train.total_steps": 400, "optim.learning_rate": 3.16e-3}))
        for run in runs
    ]
    short, after = beyond_chance(*runs), beyond_chance(*long)
    line = lambda rows: ", ".join(
        f"{n} " + " ".join(f"{v:.1f}" for v in row) for n, row in rows.items()
    )
    more = [q >= v for q, v in zip(after["q"], after["v"])]
    return Reason(
        (
            "in 100 steps S learns mostly through the value, and the query's directions are still "
            "noise; after 400 steps at a third of the rate the query should share as many "
            "dimensions as the value in most layers"
        ),
        (
            "dimensions that the first 16 directions share beyond chance, by layer: after 100 "
            f"steps {line(short)}; after 400 {line(after)}"
        ),
        sum(more) > len(more) / 2,
        {"beyond_chance_100_steps": short, "beyond_chance_400_steps": after},
    )


def run(lab):
    arm = arms.lora_arm(lab, 64, "query+value", name="r=64")
    counts, grids = {"q": [], "v": []}, {"q": [], "v": []}
    for one, two in zip(matrices(arm.runs[0], ("q", "v")), matrices(arm.runs[1], ("q", "v"))):
        u, v = one.update.u, two.update.u
        counts[one.path.split("/")[-2]].append(
            int(shared_directions(u, v, above=CLAIM.tolerance["above"]))
        )
        grids[one.path.split("/")[-2]].append(phi(u, v))
    more = [q >= v for q, v in zip(counts["q"], counts["v"])]
    reason = longer(lab, arm.runs[:2])
    before = starts(arm.runs[0])
    moved = np.median(
        [
            np.linalg.norm(m.a - (zero := before[m.path][m.layer])) / np.linalg.norm(zero)
            for m in matrices(arm.runs[0], ("q", "v"))
        ]
    )
    by_a = np.mean(
        [
            phi(input_directions(m.a), input_directions(n.a))[0, 0]
            for m, n in zip(matrices(arm.runs[0], ("q", "v")), matrices(arm.runs[1], ("q", "v")))
        ]
    )
    return Finding(
        "reproduced"
        if sum(more) > len(more) / 2 and counts["q"] != counts["v"]
        else "inconclusive"
        if counts["q"] == counts["v"]
        else "not reproduced",
        f"shared directions by layer: q {counts['q']}, v {counts['v']}",
        {
            "counts": counts,
            "chance_1_1": random_phi(1, 1, 128),
            "phi_1_1_of_a": float(by_a),
            "a_moved": float(moved),
            "reason": reason.entry(),
        },
        note="Directions are those of the whole update, in the space of inputs. The paper takes those of A alone; phi(1, 1) of A is "
        + f"{by_a:.2f} on average, and A has moved by {moved:.1f} times the norm of its random start (median of seed 0)."
        + reason.text,
        plot={
            "x": "j, seed 1",
            "y": "i, seed 0",
            "heat": {
                f"{n}, layer {layer}": np.round(rows[layer][:32, :32], 3).tolist()
                for n, rows in grids.items()
                for layer in (1,)
            },
        },
        seeds=(0, 1),
    )
