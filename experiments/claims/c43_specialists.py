"""C43: specialised adapters beat one generalist."""

import numpy as np

from lab.claim import Claim, Finding, Part
from lab.contrast import diverged_in, forest_row, interval_of, of_losses
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="C43",
    title="An adapter for each task beats one of as many parameters for all",
    source="LoRA Land (arXiv 2405.00732)",
    published="adapters of rank 8, one for each of 31 tasks, beat GPT-4 by 10 points and their base by 34, on average",
    expected="on sentences of Rotten Tomatoes and on the same backwards, two adapters of rank 4 of 100 steps each lose less than one of rank 8 of 200 steps on both, by a tenth of what the two gain",
    kind="trained",
    minutes=4,
    models="S",
    regime="all linear layers, alpha 16, batches of 16, each arm at its own best rate on its own texts; the prompt of a backward sentence says so",
    distance="two tasks with the same words, of which the second is unlike anything in pretraining; the paper's generalist is another, far larger model; the generalist alone may have seen a test sentence in its other direction",
    limits={"share": MARGIN},
)
SPECIALIST = {"lora.rank": 4}
GENERALIST = {"lora.rank": 8, "train.total_steps": 200, "data.name": "both"}


def run(lab):
    forward = lab.arm("rank 4, forwards", S.with_(**SPECIALIST))
    backward = lab.arm("rank 4, backwards", S.with_(**SPECIALIST, **{"data.name": "backwards"}))
    general = lab.arm("rank 8, both", S.with_(**GENERALIST))
    weights = np.concatenate([forward.weights, backward.weights])
    if not np.array_equal(weights, general.weights):
        raise ValueError(
            "The generalist of C43 must be tested on the examples of both specialists."
        )
    each = np.concatenate([forward.losses, backward.losses], axis=1)
    before = np.concatenate([forward.untuned, backward.untuned], axis=1)
    worse = of_losses(((1, general.losses), (-1, each)), weights)
    gain = of_losses(((1, before), (-1, each)), weights)
    count = len(forward.weights)
    halves = {
        "forwards": of_losses(
            ((1, general.losses[:, :count]), (-1, forward.losses)), forward.weights
        ),
        "backwards": of_losses(
            ((1, general.losses[:, count:]), (-1, backward.losses)), backward.weights
        ),
    }
    part = Part(
        "two specialists beat the generalist",
        "effect",
        judge_effect(worse, max(MARGIN * gain.value, 0.0)),
        f"the generalist is {worse} nats above the two ({worse.value / gain.value:.0%} of their "
        "gain)",
    )
    forest = {"both": worse} | halves
    arms = (forward, backward, general)
    return Finding(
        (part,),
        {
            "generalist_above": {name: interval_of(gap.interval()) for name, gap in forest.items()},
            "gain_of_specialists": interval_of(gain.interval()),
            "arms": {arm.name: arm.summary() for arm in arms},
        },
        note="By task the generalist is above its specialist by "
        + ", ".join(f"{gap} ({name})" for name, gap in halves.items())
        + ".",
        plot={
            "forest": {name: forest_row(gap) for name, gap in forest.items()},
            "x": "loss of the generalist above the specialists, nats",
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms),
    )
