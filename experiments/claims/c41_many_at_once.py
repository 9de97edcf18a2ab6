"""C41: adapters that are trained together each learn as they would alone."""

from dataclasses import replace

import numpy as np

from lab.claim import Claim, Finding, Part
from lab.setting import S

CLAIM = Claim(
    id="C41",
    title="Adapters trained together each learn as alone",
    source="PLoRA (2508.02932), LoRAFusion (2510.00206), mLoRA (2312.02515)",
    published="makespan up to 7.5 times shorter, throughput up to 12.8 times (PLoRA); 1.47 times (LoRAFusion); results unchanged",
    expected="eight LoRA runs of different seeds and rates, trained side by side in one program for 20 steps: every training loss within 1e-4 nats of the run's own when it is trained alone. Speed is not judged",
    kind="theorem",
    minutes=1,
    models="S",
    regime="rank 8 on all linear layers, 4 sentences a batch, float32",
    distance="the published speed is one of GPUs with idle units and out of scope here: `python experiments/benchmark_sweep.py --stack 8`, about 10 minutes on one GPU. On two cores that a single run keeps busy, an earlier version of this claim measured 0.96 times at 8 adapters, and 1.5 times with 1 x 16 tokens",
    limits={"nats": 1e-4},
)
ALONE = replace(S, bases=1).with_(
    **{"train.batch_size": 4, "train.total_steps": 20, "train.log_every": 1}
)
PAIRS = [(seed, float(rate)) for seed, rate in enumerate(np.geomspace(1e-3, 1e-2, 8).round(5))]


def judge_same(worst: float):
    """The verdict on the largest difference of two losses of one step."""
    return "reproduced" if worst < CLAIM.limits["nats"] else "not reproduced"


def run(lab):
    alone = [lab.trace(lab.run(ALONE, seed, rate, scored=False)) for seed, rate in PAIRS]
    together = lab.together(ALONE, PAIRS)
    steps = [[step for step, _ in trace] for trace in (*alone, *together)]
    if any(each != steps[0] for each in steps):
        raise RuntimeError("Runs logged other steps together than alone.")
    off = np.abs(np.array(alone)[..., 1] - np.array(together)[..., 1])
    worst = float(off.max())
    said = f"losses of {off.size} steps differ by {worst:.1e} nats at most"
    return Finding(
        (Part("losses", "exact", judge_same(worst), said),),
        {"largest_by_adapter": off.max(1).tolist(), "rates": [rate for _, rate in PAIRS]},
        seeds=tuple(seed for seed, _ in PAIRS),
    )
