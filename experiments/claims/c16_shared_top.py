"""C16: adapters of rank 8 and 64 share their top direction and little else."""

import numpy as np

from lab import arms
from lab.inside import matrices, starts
from lab.protocol import Claim, Finding, Reason, with_
from lora_jax.analysis import input_directions, phi, random_phi, sampled_phi, shared_start

CLAIM = Claim(
    id="C16",
    title="Rank 8 and rank 64 share their top direction",
    source="LoRA, section 7.2, Figure 3",
    published="phi above 0.5 at dimension 1, for query and value of layer 48 of GPT-3; no overlap in the other directions",
    expected="S on domain B, different seeds, equal alpha / r: median over layers of phi(1, 1) at least 0.5 for q or v, and phi(8, 8) below half of phi(1, 1)",
    kind="trained",
    tolerance={"phi": 0.5},
)


def longer(lab, one, two) -> Reason:
    """Whether 100 steps are too few: four times as many at a third of the rate, which averages the
    noise of small batches.
    """
    at = lambda steps: [
        lab.run(with_(run.config, **{"train.total_steps": steps, "optim.learning_rate": 3.16e-3}))
        for run in (one, two)
    ]
    first, eighth = _similarity(*at(400))
    slow, learnt = _similarity(*at(100))[0], _similarity(one, two, start=True)[0]
    line = lambda row: " and ".join(f"{n} {value:.2f}" for n, value in row.items())
    return Reason(
        (
            "100 steps of 16 sentences leave the noise of the batches in the directions; after 400 "
            "steps at a third of the rate phi(1, 1) should reach 0.5 for q or v"
        ),
        (
            f"{line(first)}, with phi(8, 8) {line(eighth)} (100 steps at that rate: {line(slow)}), "
            "so that the other part, phi(8, 8) below half of phi(1, 1), would hold for "
            f"{' and '.join(n for n in first if eighth[n] < first[n] / 2) or 'neither'}; the "
            "random start of A is not what hides it: of what A learnt in 100 steps alone (A minus "
            f"its start) phi(1, 1) is {line(learnt)}"
        ),
        max(first.values()) >= CLAIM.tolerance["phi"],
        {
            "phi_1_1_after_400_steps": first,
            "phi_8_8_after_400_steps": eighth,
            "phi_1_1_after_100_steps_at_that_rate": slow,
            "phi_1_1_without_start": learnt,
        },
    )


def _similarity(one, two, *, start: bool = False) -> tuple[dict[str, float], dict[str, float]]:
    """Medians over layers of phi(1, 1) and phi(8, 8) of the factors a, by name, with their starts
    subtracted if `start`.
    """
    rows = {"q": [], "v": []}
    before = [starts(run) for run in (one, two)] if start else [None, None]
    for m, n in zip(matrices(one, ("q", "v")), matrices(two, ("q", "v"))):
        a, b = (
            x.a if zero is None else x.a - zero[x.path][x.layer] for x, zero in zip((m, n), before)
        )
        rows[m.path.split("/")[-2]].append(phi(input_directions(a, 8), input_directions(b, 8)))
    first, eighth = (
        {name: float(np.median([grid[i, i] for grid in grids])) for name, grids in rows.items()}
        for i in (0, 7)
    )
    return first, eighth


def run(lab):
    narrow = arms.lora_arm(lab, 8, "query+value", name="r=8", **{"lora.alpha": 16.0})
    wide_config = with_(
        narrow.runs[0].config, **{"lora.rank": 64, "lora.alpha": 128.0, "train.seed": 1}
    )
    wide, same = lab.run(wide_config), lab.run(with_(wide_config, **{"train.seed": 0}))
    grids = {"q": [], "v": []}
    trap = {"different seeds": [], "one seed": []}
    for one, two, twin in zip(
        matrices(narrow.runs[0], ("q", "v")), matrices(wide, ("q", "v")), matrices(same, ("q", "v"))
    ):
        grids[one.path.split("/")[-2]].append(phi(input_directions(one.a), input_directions(two.a)))
        trap["different seeds"].append(
            float(phi(input_directions(one.a), input_directions(two.a))[0, 0])
        )
        trap["one seed"].append(float(phi(input_directions(one.a), input_directions(twin.a))[0, 0]))
    overlaps = [_start_overlap(narrow.runs[0], other) for other in (wide, same)]
    reason = longer(lab, narrow.runs[0], wide)
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
            "reason": reason.entry(),
            "start_overlap": dict(zip(("different seeds", "one seed"), overlaps)),
        },
        note=f"Factors start from random ones: at the start the overlap beyond chance is {overlaps[0]:+.3f} with different seeds and {overlaps[1]:+.3f} with one. Median phi(1, 1) is {np.median(trap['different seeds']):.2f} with different seeds and {np.median(trap['one seed']):.2f} with one. Chance is not small here: a whole a of rank 64 spans half of 128 inputs."
        + reason.text,
        plot={
            "x": "j of rank 64",
            "y": "i of rank 8",
            "heat": {
                f"{n}, layer {len(rows) // 2}": np.round(rows[len(rows) // 2], 3).tolist()
                for n, rows in grids.items()
            },
        },
        seeds=(0, 1),
    )


def _start_overlap(one, two) -> float:
    """`shared_start` of the factors before the first step, mean over matrices."""
    first, second = starts(one), starts(two)
    return float(
        np.mean([shared_start(a, b) for path in first for a, b in zip(first[path], second[path])])
    )
