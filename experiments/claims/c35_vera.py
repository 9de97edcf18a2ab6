"""C35: VeRA is as good as LoRA with a tenth of its parameters."""

from lab.claim import Claim, Finding, Part
from lab.contrast import difference, diverged_in, forest_row, interval_of
from lab.counts import ALL_LINEAR, trained_parameters
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_not_worse
from lora_jax import LoraSpec

CLAIM = Claim(
    id="C35",
    title="VeRA is as good as LoRA with a tenth of its parameters",
    source="VeRA (arXiv 2310.11454)",
    published="on par on GLUE with RoBERTa-base: 0.043 M and 0.3 M parameters; 1.6 M and 159.9 M with Llama 7B",
    expected="VeRA of rank r trains r + out numbers at each matrix, at rank 64 a tenth of LoRA's of rank 8 or fewer; on S, both on all linear layers at their own best rates, its loss is not above LoRA's by a tenth of LoRA's gain",
    kind="trained",
    minutes=2,
    models="S",
    regime="100 steps of 16 sentences; VeRA's rates are tuned from 0.13 on, its best is far above LoRA's",
    distance="width 160 with ranks to 64; the paper's are 256 and more of 768 and more, on encoders",
    limits={"parameters": 0.1, "share": MARGIN},
)
RANK = 64
# In and out of each linear layer of S, of width 160 with an MLP three times as wide.
SHAPES = [(160, 160)] * 4 + [(160, 480)] * 2 + [(480, 160)]
LAYERS = 4


def counts() -> dict[str, int]:
    """Trained numbers on S: VeRA's, those that the paper's formula gives, and LoRA's."""
    return {
        "VeRA": trained_parameters("S", LoraSpec(rank=RANK, variant="vera"), ALL_LINEAR),
        "formula": LAYERS * sum(RANK + out for _, out in SHAPES),
        "LoRA r=8": trained_parameters("S", LoraSpec(rank=8), ALL_LINEAR),
        "LoRA r=1": trained_parameters("S", LoraSpec(rank=1), ALL_LINEAR),
    }


def judge_counts(found) -> str:
    """The verdict on the counts."""
    few = found["VeRA"] <= CLAIM.limits["parameters"] * found["LoRA r=8"]
    return "reproduced" if few and found["VeRA"] == found["formula"] else "not reproduced"


def run(lab):
    found = counts()
    arms = {
        "LoRA r=8": lab.arm("LoRA r=8", S),
        "LoRA r=1": lab.arm("LoRA r=1", S.with_(**{"lora.rank": 1})),
    }
    vera = S.with_(**{"lora.rank": RANK, "lora.variant": "vera"})
    arms["VeRA"] = lab.arm("VeRA", vera, guess=0.128)
    behind = {name: difference(arms["VeRA"], arms[name]) for name in ("LoRA r=8", "LoRA r=1")}
    whole = arms["LoRA r=8"].gain().value
    first = behind["LoRA r=8"]
    return Finding(
        (
            Part(
                "parameters",
                "exact",
                judge_counts(found),
                f"{found['VeRA']:,} parameters, {found['VeRA'] / found['LoRA r=8']:.1%} of LoRA's",
            ),
            Part(
                "the loss",
                "not worse",
                judge_not_worse(first, CLAIM.limits["share"] * whole),
                f"{first} nats behind LoRA of rank 8 ({first.value / whole:.0%} of its gain)",
            ),
        ),
        {
            "counts": found,
            "behind": {name: interval_of(one.interval()) for name, one in behind.items()},
            "arms": {name: arm.summary() for name, arm in arms.items()},
        },
        note=f"LoRA of rank 1, {found['LoRA r=1']:,} parameters, is the nearest in size: VeRA is "
        f"{behind['LoRA r=1']} nats behind it. VeRA's best rate is "
        f"{arms['VeRA'].rate / arms['LoRA r=8'].rate:.0f} times LoRA's.",
        plot={
            "forest": {f"VeRA less {name}": forest_row(one) for name, one in behind.items()},
            "x": "nats",
            "margin": CLAIM.limits["share"] * whole,
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms.values()),
    )
