"""C31: all linear layers beat query and value; the MLP beats attention for one budget."""

from lab import arms
from lab.protocol import Claim, Finding, compare, interval_of, shown
from lab.verdicts import judge_all, judge_effect

CLAIM = Claim(
    id="C31",
    title="All layers beat q+v, the MLP beats attention for one budget",
    source="QLoRA, Figure 2; LoRA Without Regret, 2025",
    published="q+v stays below full fine-tuning, all layers reach it; MLP of rank 128 beats attention of rank 256",
    expected="S on domain B: loss of the MLP alone (5 and 6: just below and above the budget of attention's rank 8) below attention's, and all layers at rank 8 below q+v at rank 8",
    kind="trained",
    tolerance={"nats": 0.005},
)
# Entries a layer: attention 8 * 8 * 128 = 8,192; the MLP 3 * r * (128 + 384) = 1,536 r.
SETTINGS = {
    "q+v r=8": (8, "query+value"),
    "attention r=8": (8, "attention"),
    "mlp r=5": (5, "mlp"),
    "mlp r=6": (6, "mlp"),
    "all r=8": (8, "all-linear"),
    "all r=1": (1, "all-linear"),
}


def run(lab):
    found = {
        name: arms.lora_arm(lab, rank, targets, name=name)
        for name, (rank, targets) in SETTINGS.items()
    }
    pairs = {
        "attention - mlp r=5": ("attention r=8", "mlp r=5"),
        "attention - mlp r=6": ("attention r=8", "mlp r=6"),
        "q+v - all r=8": ("q+v r=8", "all r=8"),
        "q+v - all r=1": ("q+v r=8", "all r=1"),
    }
    gaps = {name: compare(found[a], found[b]) for name, (a, b) in pairs.items()}
    verdicts = [
        judge_effect(each, gap, tolerance=CLAIM.tolerance["nats"])
        for name, (gap, each) in gaps.items()
        if name != "q+v - all r=1"
    ]
    trained = {
        name: arm.runs[0].result.trainable_parameters
        for name, arm in found.items()
        if arm.runs[0].result
    }
    return Finding(
        judge_all(verdicts),
        "; ".join(f"{name} {shown(gap)}" for name, (gap, _) in gaps.items()),
        {
            "loss": {n: a.mean() for n, a in found.items()},
            "trainable": trained,
            "gaps": {n: interval_of(g) for n, (g, _) in gaps.items()},
            "arms": {n: a.summary() for n, a in found.items()},
        },
        note="Trained entries: "
        + ", ".join(f"{n} {c:,}" for n, c in trained.items())
        + ". All layers at rank 1 have fewer entries than q+v at rank 8.",
        seeds=lab.seeds,
        diverged=tuple(d for arm in found.values() for d in arm.diverged),
    )
