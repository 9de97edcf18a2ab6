"""C42: a batch whose examples have different adapters gives each what its own adapter gives."""

from lab.claim import Claim, Finding, Part
from lab.setting import S

CLAIM = Claim(
    id="C42",
    title="A batch of mixed adapters gives each example what its own adapter gives",
    source="Punica (2310.18547); S-LoRA (2311.03285)",
    published="12 times (Punica) and 4 times (S-LoRA) the throughput of serving one adapter after another, with the same outputs",
    expected="six trained adapters of two seeds, two ranks and two choices of layers over one base: the last hidden states of a mixed batch within 1e-5, relative to the largest, of each adapter's own. Speed is not judged",
    kind="theorem",
    minutes=1,
    models="S",
    regime="24 sentences, float32",
    distance="the published speed is one of GPUs and of many adapters, and out of scope here: `python experiments/three_adapters.py` serves three from one base; timing `apply_many` against merging one after another takes about 10 minutes on one GPU",
    limits={"relative": 1e-5},
)
ARMS = {
    "r=8": S,
    "r=8, query and value": S.with_(**{"lora.targets": "query+value"}),
    "r=1": S.with_(**{"lora.rank": 1}),
}
SEEDS = (0, 3)  # both stand on the first pretraining


def judge_same(relative: float):
    """The verdict on the largest relative difference."""
    return "reproduced" if relative < CLAIM.limits["relative"] else "not reproduced"


def run(lab):
    arms = [lab.arm(name, setting) for name, setting in ARMS.items()]
    runs = [run for arm in arms for run in arm.runs if run.seed in SEEDS]
    off = lab.mixed(runs)
    said = f"hidden states of {len(runs)} adapters in one batch differ by {off:.1e} at most"
    return Finding(
        (Part("outputs", "exact", judge_same(off), said),),
        {"largest_relative_difference": off, "adapters": len(runs)},
        seeds=SEEDS,
    )
