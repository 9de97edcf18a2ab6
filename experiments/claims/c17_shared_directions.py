"""C17: two seeds share more directions in the query's update than in the value's."""

import numpy as np

from lora_jax import input_directions, phi, random_phi, shared_directions
from lora_jax.claims import arms
from lora_jax.claims.inside import matrices
from lora_jax.claims.protocol import Claim, Finding

CLAIM = Claim(
    id="C17",
    title="Two seeds share more directions in q than in v",
    source="LoRA, section 7.2, Figure 4",
    published="at rank 64, the query's update has a higher intrinsic rank than the value's, by what two seeds share",
    expected="S on domain B, rank 64 on q+v, seeds 0 and 1: leading sizes i with phi(i, i) above 5 times chance, at least as many for q as for v in most layers",
    kind="trained",
    tolerance={"above": 5.0},
)


def run(lab):
    arm = arms.lora_arm(lab, 64, "query+value", name="r=64")
    counts, grids = {"q": [], "v": []}, {"q": [], "v": []}
    for one, two in zip(matrices(arm.runs[0], ("q", "v")), matrices(arm.runs[1], ("q", "v"))):
        u, v = one.update.u, two.update.u
        counts[one.path.split("/")[-2]].append(int(shared_directions(u, v, above=CLAIM.tolerance["above"])))
        grids[one.path.split("/")[-2]].append(phi(u, v))
    more = [q >= v for q, v in zip(counts["q"], counts["v"])]
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
        {"counts": counts, "chance_1_1": random_phi(1, 1, 128), "phi_1_1_of_a": float(by_a)},
        note="Directions are those of the whole update, in the space of inputs. The paper takes those of A alone, which here stay closer to their random start; phi(1, 1) of A is "
        + f"{by_a:.2f} on average.",
        plot={
            "x": "j, seed 1",
            "y": "i, seed 0",
            "heat": {f"{n}, layer {layer}": np.round(rows[layer][:32, :32], 3).tolist() for n, rows in grids.items() for layer in (1,)},
        },
        seeds=(0, 1),
    )
