"""C31: all linear layers beat query and value; the MLP beats attention for one budget."""

from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import difference, diverged_in, forest_row, interval_of
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="C31",
    title="All layers beat q+v, and the MLP beats attention for one budget",
    source="QLoRA, Figure 2; LoRA Without Regret, 2025",
    published="q+v stays below full fine-tuning, all layers reach it; MLP of rank 128 beats attention of rank 256",
    expected="attention at rank 8 (10,240 entries a layer) is worse than the MLP at rank 5 (9,600) and at rank 6 (11,520), and q+v at rank 8 is worse than all linear layers at rank 8, each by a tenth of what the better one gains",
    kind="trained",
    minutes=4,
    models="S",
    regime="100 steps of 16 sentences, each arm at its own best rate, alpha 16",
    distance="the MLP of S is three times as wide as the model, of LLaMA-7B 2.7 times; that all layers reach full fine-tuning is C12",
    limits={"share": MARGIN},
)
SETTINGS = {
    "q+v, rank 8": (8, "query+value"),
    "attention, rank 8": (8, "attention"),
    "MLP, rank 5": (5, "mlp"),
    "MLP, rank 6": (6, "mlp"),
    "all, rank 8": (8, "all-linear"),
    "all, rank 1": (1, "all-linear"),
}


def run(lab):
    found = {
        name: lab.arm(name, S.with_(**{"lora.rank": rank, "lora.targets": targets}))
        for name, (rank, targets) in SETTINGS.items()
    }
    pairs = [
        ("attention, rank 8", "MLP, rank 5"),
        ("attention, rank 8", "MLP, rank 6"),
        ("q+v, rank 8", "all, rank 8"),
        ("q+v, rank 8", "all, rank 1"),
    ]
    gaps = {(a, b): difference(found[a], found[b]) for a, b in pairs}
    judged = [
        judge_effect(gap, max(MARGIN * found[better].gain().value, 0.0))
        for (_, better), gap in gaps.items()
    ]
    said = [f"{a} is {gap} above {b}" for (a, b), gap in gaps.items()]
    parts = (
        Part("the MLP beats attention", "effect", judge_all(judged[:2]), "; ".join(said[:2])),
        Part("all layers beat q+v", "effect", judged[2], said[2]),
    )
    return Finding(
        parts,
        {
            "gaps": {f"{a} above {b}": interval_of(gap.interval()) for (a, b), gap in gaps.items()},
            "arms": {name: arm.summary() for name, arm in found.items()},
        },
        note=f"All layers at rank 1 have fewer entries than q+v at rank 8: {said[3]}.",
        plot={
            "forest": {f"{a} above {b}": forest_row(gap) for (a, b), gap in gaps.items()},
            "x": "difference of the loss, nats",
        },
        seeds=lab.seeds,
        diverged=diverged_in(found.values()),
    )
