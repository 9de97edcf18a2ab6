"""C20: with 100 examples LoRA is better than full fine-tuning."""

from lab.claim import Claim, Finding, Part
from lab.contrast import difference, diverged_in, forest_row, interval_of
from lab.setting import FULL, MINILM
from lab.verdicts import judge_effect, judge_equal

CLAIM = Claim(
    id="C20",
    title="With 100 examples LoRA beats full fine-tuning, with 1,000 it is as good",
    source="LoRA, Table 16",
    published="MNLI, GPT-3: LoRA 63.8 against 60.2 at 100 examples, 85.6 against 85.8 at 1,000",
    expected="rank 8 has a point more right answers than full fine-tuning of the linear layers at 100 examples, and at 1,000 within 2 points as many",
    kind="trained",
    minutes=1,
    models="MiniLM",
    regime="Rotten Tomatoes, all linear layers, 40 steps of 16 at 100 examples (6 epochs), 100 steps at 1,000; each arm at its own best rate",
    distance="two classes, and a model whose sentences are already apart; the subset is one under all seeds; the paper trains q and v of GPT-3",
    limits={"better": 0.01, "points": 0.02},
)
SIZES = {100: {"train.total_steps": 40}, 1000: {}}


def run(lab):
    arms, gaps, losses = {}, {}, {}
    for size, changes in SIZES.items():
        base = MINILM.with_(**{"data.train_examples": size}, **changes)
        lora = lab.arm(f"rank 8, {size}", base)
        full = lab.arm(f"full, {size}", base.with_(**FULL))
        gaps[size] = difference(lora, full, column="correct")
        losses[size] = difference(lora, full)
        arms |= {lora.name: lora, full.name: full}
    parts = (
        Part(
            "better with 100",
            "effect",
            judge_effect(gaps[100], CLAIM.limits["better"]),
            f"100 examples: share of right answers {gaps[100]} above full",
        ),
        Part(
            "equal with 1,000",
            "equal",
            judge_equal(gaps[1000], CLAIM.limits["points"]),
            f"1,000 examples: {gaps[1000]}",
        ),
    )
    return Finding(
        parts,
        {
            "accuracy_above_full": {str(n): interval_of(g.interval()) for n, g in gaps.items()},
            "loss_above_full": {str(n): interval_of(g.interval()) for n, g in losses.items()},
            "arms": {name: arm.summary() for name, arm in arms.items()},
        },
        note="Loss of rank 8 above full: "
        + ", ".join(f"{size} examples {gap}" for size, gap in losses.items())
        + ".",
        plot={
            "forest": {f"{size} examples": forest_row(gap) for size, gap in gaps.items()},
            "x": "share of right answers above full",
            "published": {"GPT-3, 100": 0.036, "GPT-3, 1,000": -0.002},
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms.values()),
    )
