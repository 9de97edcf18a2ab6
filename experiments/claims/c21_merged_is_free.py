"""C21: a merged adapter costs nothing at inference."""

import numpy as np

from lab.changes import Merged
from lab.claim import Claim, Finding, Part
from lab.setting import MINILM, S

CLAIM = Claim(
    id="C21",
    title="A merged adapter computes the same through the base's own program",
    source="LoRA, section 4.1 and Table 1",
    published="no added latency after merging; bottleneck adapters add 20.7 to 30.3 % at batch 1 and length 128, 2.2 to 3.0 % at 32 x 512 (GPT-2 medium)",
    expected="trained adapters of rank 8, merged: the loss of every test example within 1e-4 nats of the unmerged one's, on S and on MiniLM, where the merged weights go through the model without any adapter. Milliseconds are not judged",
    kind="theorem",
    minutes=2,
    models="S and MiniLM",
    regime="float32, all linear layers, five seeds",
    distance="that the base's program runs settles that merging adds no latency; the published cost of bottlenecks is one of a GPU at batch 1 and out of scope here: `python experiments/benchmark_decode.py --only dense,merged,separate`, about 10 minutes on one GPU",
    limits={"nats": 1e-4},
)


def judge_same(worst: float):
    """The verdict on the largest difference of an example's two losses."""
    return "reproduced" if worst < CLAIM.limits["nats"] else "not reproduced"


def run(lab):
    parts, figures = [], {}
    for model, base in (("S", S), ("MiniLM", MINILM)):
        arm = lab.arm(f"{model}, r=8", base)
        apart, _ = lab.after(arm, "B")
        merged, _ = lab.after(arm, "B", Merged())
        worst = float(np.abs(merged - apart).max())
        said = f"{model}: losses of {apart.size} examples differ by {worst:.1e} nats at most"
        parts.append(Part(model, "exact", judge_same(worst), said))
        figures[model] = {"largest": worst, "mean": float(np.abs(merged - apart).mean())}
    return Finding(tuple(parts), figures, seeds=lab.seeds)
