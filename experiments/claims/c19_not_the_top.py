"""C19: the update does not follow the weight's own top directions."""

import numpy as np

from lab import arms
from lab.inside import matrices
from lab.protocol import Claim, Finding
from lora_jax.analysis import overlap_with_top, sampled_phi

CLAIM = Claim(
    id="C19",
    title="The update avoids W's top directions",
    source="LoRA, Appendix H.4, Figure 8",
    published="phi(top 10 % of W, top 4 of the update) barely exceeds 0.2",
    expected="S on domain B, rank 4: median over matrices at most 0.2 and not below chance (0.1) by more than two standard deviations",
    kind="trained",
    tolerance={"phi": 0.2},
)


def run(lab):
    arm = arms.lora_arm(lab, 4)
    rows = [
        [overlap_with_top(m.weight, m.update, share=0.1, rank=4) for m in matrices(run, ("q", "v"))]
        for run in arm.runs
        if run.result
    ]
    values = np.array(rows)
    count = round(0.1 * 128)
    chance, spread = count / 128, float(sampled_phi(4, count, 128).std())
    median = float(np.median(values))
    low = median >= chance - 2 * spread
    return Finding(
        "reproduced" if median <= CLAIM.tolerance["phi"] and low else "not reproduced",
        f"median phi {median:.3f}; chance {chance:.3f}, standard deviation {spread:.3f}",
        {"median": median, "chance": chance, "sd": spread, "by_matrix": values.mean(0).tolist()},
        note="Query and value of four layers, mean over seeds for each matrix: "
        + ", ".join(f"{v:.2f}" for v in values.mean(0))
        + ".",
        seeds=lab.seeds,
    )
