"""N15: with little data LoRA is as good as full fine-tuning, and its rank does not matter."""

from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import difference, diverged_in, forest_row, interval_of
from lab.setting import FULL, MINILM
from lab.verdicts import judge_effect, judge_equal

CLAIM = Claim(
    id="N15",
    title="With 100 to 8,530 examples LoRA is as good as full fine-tuning, at any rank",
    source="LoRA, Tables 6 and 16; QLoRA, Figure 4; C12, C20 and C32 on one real model",
    published="MNLI, GPT-3: full 60.2 / 85.8 / 88.9 / 89.5, LoRA 63.8 / 85.6 / 89.2 / 91.7 at 100, 1 k, 10 k and 392 k examples",
    expected="accuracy of rank 8 within 2 points of full fine-tuning of the linear layers, at 100, 1,000 and all examples, and of rank 1 within 2 points of rank 8 at 100 and all; at 100 rank 8 beats the head alone, so that there is something to learn",
    kind="trained",
    minutes=7,
    models="MiniLM",
    regime="Rotten Tomatoes, all linear layers; 40 steps of 16 at 100 examples (6 epochs), 100 steps at 1,000 (1.6 epochs) and at all (0.2 epochs); each arm at its own best rate",
    distance="the subset is one under all seeds, so that intervals hold for it alone; 23 M weights, one task of two classes",
    limits={"points": 0.02},
)
SIZES = {
    "100": {"data.train_examples": 100, "train.total_steps": 40},
    "1,000": {"data.train_examples": 1000},
    "all": {},
}


def arms_at(lab, size: str) -> dict[str, object]:
    base = MINILM.with_(**SIZES[size])
    named = {"full": FULL, "rank 8": {}}
    named |= {} if size == "1,000" else {"rank 1": {"lora.rank": 1}}
    return {name: lab.arm(f"{name}, {size}", base.with_(**of)) for name, of in named.items()}


def run(lab):
    found = {size: arms_at(lab, size) for size in SIZES}
    head = lab.arm("head, 100", MINILM.with_(**SIZES["100"], method="head"))
    pairs = {"rank 8 above full": ("rank 8", "full"), "rank 1 above rank 8": ("rank 1", "rank 8")}
    gaps = {
        (says, size): difference(arms[one], arms[other], column="correct")
        for says, (one, other) in pairs.items()
        for size, arms in found.items()
        if one in arms
    }
    margin = CLAIM.limits["points"]
    told = {says: [(size, gap) for (of, size), gap in gaps.items() if of == says] for says in pairs}
    learnt = difference(found["100"]["rank 8"], head, column="correct")
    parts = [
        Part(
            says,
            "equal",
            judge_all([judge_equal(gap, margin) for _, gap in rows]),
            f"{says}, share of right answers: "
            + ", ".join(f"{size} examples {gap}" for size, gap in rows),
        )
        for says, rows in told.items()
    ]
    parts.append(
        Part(
            "LoRA beats the head alone at 100",
            "effect",
            judge_effect(learnt, margin),
            f"rank 8 has {learnt} more right answers than the head alone",
        )
    )
    every = [arm for arms in found.values() for arm in arms.values()] + [head]
    return Finding(
        tuple(parts),
        {
            "accuracy": {
                f"{says}, {size}": interval_of(gap.interval()) for (says, size), gap in gaps.items()
            },
            "loss_above_full": {
                size: interval_of(difference(arms["rank 8"], arms["full"]).interval())
                for size, arms in found.items()
            },
            "above_head": interval_of(learnt.interval()),
            "arms": {arm.name: arm.summary() for arm in every},
        },
        plot={
            "forest": {f"{says}, {size}": forest_row(gap) for (says, size), gap in gaps.items()},
            "x": "difference of the share of right answers",
            "margin": margin,
        },
        seeds=lab.seeds,
        diverged=diverged_in(every),
    )
