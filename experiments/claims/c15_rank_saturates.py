"""C15: quality saturates with rank."""

from lab import arms
from lab.protocol import Claim, Finding, compare, interval_of, shown

CLAIM = Claim(
    id="C15",
    title="Quality saturates with rank",
    source="LoRA, Table 18",
    published="GPT-2 M, validation loss 1.23 at rank 1, 1.16 from 16 to 512, 1.17 at 1024",
    expected="S on domain B, all linear layers: what rank 1 misses of the best rank is 4 times what the best has on rank 64 or more, or rank 64 is the best and gains less than a quarter of that on rank 16",
    kind="trained",
    tolerance={"factor": 4},
)
RANKS = (1, 4, 16, 64)


def run(lab):
    found = {r: arms.lora_arm(lab, r) for r in RANKS}
    loss = {r: arm.mean() for r, arm in found.items()}
    best = min(loss, key=loss.__getitem__)
    rise, _ = compare(found[1], found[best])
    last = found[64] if best != 64 else found[16]
    rest, each = compare(last, found[best])
    ratio = rise.value / max(abs(rest.value), 1e-9)
    return Finding(
        "reproduced"
        if rise.low > 0 and ratio >= CLAIM.tolerance["factor"]
        else "not reproduced"
        if ratio < 2
        else "inconclusive",
        (
            f"rank 1 is {shown(rise)} above rank {best}, the best; past rank 16 it changes by "
            f"{shown(rest)}"
        ),
        {
            "loss": loss,
            "rank_1_behind_best": interval_of(rise),
            "past_16": interval_of(rest),
            "by_seed": each,
            "arms": {a.name: a.summary() for a in found.values()},
        },
        plot={
            "x": "rank",
            "y": "test loss, nats",
            "log": "x",
            "lines": {"each at its best rate": [[r, v] for r, v in loss.items()]},
        },
        seeds=lab.seeds,
        diverged=tuple(d for arm in found.values() for d in arm.diverged),
    )
