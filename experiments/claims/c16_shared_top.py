"""C16: adapters of rank 8 and 64 share their top direction and little else."""

import numpy as np

from lora_jax import input_directions, phi, random_phi, sampled_phi, shared_start
from lora_jax.claims import arms
from lora_jax.claims.inside import matrices
from lora_jax.claims.protocol import Claim, Finding, with_

CLAIM = Claim(
    id="C16",
    title="Rank 8 and rank 64 share their top direction",
    source="LoRA, section 7.2, Figure 3",
    published="phi above 0.5 at dimension 1, for query and value of layer 48 of GPT-3; no overlap in the other directions",
    expected="S on domain B, different seeds, equal alpha / r: median over layers of phi(1, 1) at least 0.5 for q or v, and phi(8, 8) below half of phi(1, 1)",
    kind="trained",
    tolerance={"phi": 0.5},
)


def run(lab):
    narrow = arms.lora_arm(lab, 8, "query+value", name="r=8", **{"lora.alpha": 16.0})
    wide_config = with_(narrow.runs[0].config, **{"lora.rank": 64, "lora.alpha": 128.0, "train.seed": 1})
    wide, same = lab.run(wide_config), lab.run(with_(wide_config, **{"train.seed": 0}))
    grids = {"q": [], "v": []}
    trap = {"different seeds": [], "one seed": []}
    for one, two, twin in zip(matrices(narrow.runs[0], ("q", "v")), matrices(wide, ("q", "v")), matrices(same, ("q", "v"))):
        grids[one.path.split("/")[-2]].append(phi(input_directions(one.a), input_directions(two.a)))
        trap["different seeds"].append(float(phi(input_directions(one.a), input_directions(two.a))[0, 0]))
        trap["one seed"].append(float(phi(input_directions(one.a), input_directions(twin.a))[0, 0]))
    starts = [_start_overlap(narrow.runs[0], other) for other in (wide, same)]
    first = {n: float(np.median([g[0, 0] for g in rows])) for n, rows in grids.items()}
    eighth = {n: float(np.median([g[7, 7] for g in rows])) for n, rows in grids.items()}
    d = 128
    good = [n for n in first if first[n] >= CLAIM.tolerance["phi"] and eighth[n] < first[n] / 2]
    return Finding(
        "reproduced" if good else "not reproduced",
        ", ".join(f"{n}: phi(1, 1) {first[n]:.2f}, phi(8, 8) {eighth[n]:.2f}" for n in first)
        + f"; chance {random_phi(1, 1, d):.3f} and {random_phi(8, 8, d):.3f}",
        {
            "phi_1_1": first,
            "phi_8_8": eighth,
            "chance": {
                "1,1": random_phi(1, 1, d),
                "8,8": random_phi(8, 8, d),
                "8,64": random_phi(8, 64, d),
                "sd 8,8": float(sampled_phi(8, 8, d).std()),
            },
            "phi_1_1_by_seed": trap,
            "start_overlap": dict(zip(("different seeds", "one seed"), starts)),
        },
        note=f"Factors start from random ones: at the start the overlap beyond chance is {starts[0]:+.3f} with different seeds and {starts[1]:+.3f} with one. Median phi(1, 1) is {np.median(trap['different seeds']):.2f} with different seeds and {np.median(trap['one seed']):.2f} with one. Chance is not small here: a whole a of rank 64 spans half of 128 inputs.",
        plot={
            "x": "j of rank 64",
            "y": "i of rank 8",
            "heat": {f"{n}, layer {len(rows) // 2}": np.round(rows[len(rows) // 2], 3).tolist() for n, rows in grids.items()},
        },
        seeds=(0, 1),
    )


def _start_overlap(one, two) -> float:
    """`shared_start` of the factors before the first step, mean over matrices."""
    from lora_jax.train.loop import initial_state
    from lora_jax.train.task import task_of

    task = task_of(one.config)
    first, second = (initial_state(run.config, task, 1)[1].lora for run in (one, two))
    return float(
        np.mean(
            [
                shared_start(np.asarray(first[p].a[layer]), np.asarray(second[p].a[layer]))
                for p in first
                for layer in range(first[p].a.shape[0])
            ]
        )
    )
