"""C13: rank 1 is enough for query and value together, but not for the query alone."""

from lab.claim import Claim, Finding, Part, Reason, judge_all
from lab.contrast import difference, diverged_in, forest_row, interval_of
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect, judge_not_worse

CLAIM = Claim(
    id="C13",
    title="Rank 1 is enough for query and value, not for the query alone",
    source="LoRA, Table 6",
    published="WikiSQL: Wq 68.8 to 70.5 at any rank; Wq, Wv 73.4 at rank 1, 73.8 at best",
    expected="q+v at rank 1 loses at most a tenth of what q+v at rank 8 gains on the untuned model; q alone, at rank 1 and at rank 16, is worse than q+v at rank 1 by a tenth of what that gains",
    kind="trained",
    minutes=4,
    models="S",
    regime="100 steps of 16 sentences, each arm at its own best rate",
    distance="matrices of 160 x 160 in place of 12,288 x 12,288, 100 steps of language modelling in place of epochs of WikiSQL; ranks 8 and 16 are named beforehand where the paper has the best of five",
    limits={"share": MARGIN},
)
QUERY = "layers/attn/q/kernel"
SHORT = 25


def qv(lab, rank, **changes):
    name = f"q+v, rank {rank}" + "".join(f", {value} steps" for value in changes.values())
    return lab.arm(name, S.with_(**{"lora.rank": rank, "lora.targets": "query+value", **changes}))


def less_to_learn(lab) -> Reason:
    """Whether rank 1 misses less where there is less to learn: a quarter of the steps."""
    low, high = (qv(lab, rank, **{"train.total_steps": SHORT}) for rank in (1, 8))
    missing, gain = difference(low, high), high.gain().value
    return Reason(
        "100 steps teach S more than one direction a matrix can hold; after 25 steps rank 1 "
        "should be within a tenth of rank 8",
        f"after {SHORT} steps it misses {missing.value / gain:.0%} ({missing} of {gain:.3f} nats)",
        judge_not_worse(missing, MARGIN * gain) == "reproduced",
        {"missing": interval_of(missing.interval()), "gain": gain},
    )


def run(lab):
    one, eight = qv(lab, 1), qv(lab, 8)
    query = {
        rank: lab.arm(f"q, rank {rank}", S.with_(**{"lora.rank": rank, "lora.targets": QUERY}))
        for rank in (1, 16)
    }
    missing, gain = difference(one, eight), eight.gain().value
    behind = {rank: difference(arm, one) for rank, arm in query.items()}
    smallest = max(MARGIN * one.gain().value, 0.0)
    enough = judge_not_worse(missing, MARGIN * gain)
    parts = (
        Part(
            "rank 1 is enough for q+v",
            "not worse",
            enough,
            f"q+v at rank 1 misses {missing} nats, {missing.value / gain:.0%} of the gain at rank "
            "8",
        ),
        Part(
            "the query alone is not enough at any rank",
            "effect",
            judge_all([judge_effect(gap, smallest) for gap in behind.values()]),
            "above q+v at rank 1: "
            + ", ".join(f"q at rank {rank} {gap}" for rank, gap in behind.items()),
        ),
    )
    reason = None if enough == "reproduced" else less_to_learn(lab)
    gaps = {"q+v, rank 1, above rank 8": missing}
    gaps |= {f"q, rank {rank}, above q+v, rank 1": gap for rank, gap in behind.items()}
    arms = (one, eight, *query.values())
    return Finding(
        parts,
        {
            "arms": {arm.name: arm.summary() for arm in arms},
            "gaps": {name: interval_of(gap.interval()) for name, gap in gaps.items()},
            "reason": None if reason is None else reason.entry(),
        },
        note="" if reason is None else reason.text,
        plot={
            "forest": {name: forest_row(gap) for name, gap in gaps.items()},
            "x": "difference of the loss, nats",
            "margin": MARGIN * gain,
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms),
    )
