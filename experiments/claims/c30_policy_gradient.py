"""C30: policy gradient needs almost no rank."""

from dataclasses import replace

from lab.claim import Claim, Finding, Part
from lab.contrast import OverSeeds, difference, diverged_in, forest_row, interval_of
from lab.setting import FULL, MINILM
from lab.verdicts import judge_equal

CLAIM = Claim(
    id="C30",
    title="By policy gradient, rank 1 is as good as full fine-tuning",
    source="LoRA Without Regret, 2025",
    published="LoRA of rank 1 reaches full fine-tuning's reward on MATH and GSM8K: an episode tells about one bit",
    expected="a classifier that draws its answer and is told whether it is right: the expected reward at rank 1 is within 0.02 of full fine-tuning of the linear layers, which reaches 0.6 or more where chance gives 0.5 (else inconclusive)",
    kind="trained",
    minutes=18,
    models="MiniLM",
    regime="REINFORCE, baseline the batch's mean, on Rotten Tomatoes, 100 steps of 16 drawn answers, all linear layers, each arm at the rate of the best expected reward",
    distance="answers of one step among two, so that an answer tells the label; the paper draws long answers to problems",
    limits={"reward": 0.02, "least": 0.6},
)
ARMS = {"rank 1": {"lora.rank": 1}, "full": FULL}


def run(lab):
    base = replace(MINILM, rewarded=True)
    arms = {name: lab.arm(name, base.with_(**changes)) for name, changes in ARMS.items()}
    rewards = {name: OverSeeds(tuple(1 - x for x in arm.by_seed())) for name, arm in arms.items()}
    less = difference(arms["rank 1"], arms["full"])  # losses are 1 minus the expected reward
    learnt = rewards["full"].interval().low >= CLAIM.limits["least"]
    part = Part(
        "rank 1 is as good as full",
        "equal",
        judge_equal(less, CLAIM.limits["reward"]) if learnt else "inconclusive",
        f"expected reward {rewards['rank 1']} at rank 1 and {rewards['full']} full, less by {less}",
    )
    return Finding(
        (part,),
        {
            "reward": {name: interval_of(row.interval()) for name, row in rewards.items()},
            "less": interval_of(less.interval()),
            "arms": {name: arm.summary() for name, arm in arms.items()},
        },
        plot={
            "forest": {"rank 1 below full": forest_row(less)},
            "x": "difference of the expected reward",
            "margin": CLAIM.limits["reward"],
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms.values()),
    )
