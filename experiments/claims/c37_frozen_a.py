"""C37: freezing a (LoRA-FA) costs little at twice the rank, and much at equal rank."""

from lab.claim import Claim, Finding, Part
from lab.contrast import difference, diverged_in, forest_row, interval_of
from lab.counts import trained_parameters
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect, judge_not_worse
from lora_jax import LoraSpec

CLAIM = Claim(
    id="C37",
    title="Freezing a halves what is trained, costs little at twice the rank and much at equal rank",
    source="LoRA-FA (arXiv 2308.03303); PEFT's method comparison",
    published="on par with LoRA in the paper; PEFT's MetaMathQA table at one rank: 0.404 and 0.478",
    expected="half of LoRA's parameters on square matrices, exactly; S, all linear layers, each arm at its own best rate: at rank 16 the loss is not above that of LoRA of rank 8 by a tenth of its gain; at rank 8, with PEFT's scaling of b's gradient, it is above by that tenth or more",
    kind="trained",
    minutes=4,
    models="S",
    regime="100 steps of 16 sentences",
    distance="width 160; PEFT's table is of a 3B model at one rate for each method",
    limits={"share": MARGIN},
)
SQUARE = r"layers/attn/[qkvo]/kernel"
FROZEN = {"lora.variant": "lora_fa"}


def counts() -> dict[str, int]:
    """Trained numbers on the square matrices of S at rank 8."""
    specs = {"LoRA": LoraSpec(rank=8), "LoRA-FA": LoraSpec(rank=8, variant="lora_fa")}
    return {name: trained_parameters("S", spec, SQUARE) for name, spec in specs.items()}


def judge_counts(found) -> str:
    """The verdict on the counts."""
    return "reproduced" if 2 * found["LoRA-FA"] == found["LoRA"] > 0 else "not reproduced"


def run(lab):
    found = counts()
    lora = lab.arm("LoRA r=8", S)
    peft = {"optim.precondition_b": True}
    arms = {
        "r=16": lab.arm("LoRA-FA r=16", S.with_(**FROZEN, **{"lora.rank": 16})),
        "r=8": lab.arm("LoRA-FA r=8", S.with_(**FROZEN)),
        "r=8, scaled": lab.arm("LoRA-FA r=8, PEFT's scaling", S.with_(**FROZEN, **peft)),
    }
    behind = {name: difference(arm, lora) for name, arm in arms.items()}
    whole = lora.gain().value
    margin = CLAIM.limits["share"] * whole
    said = lambda name: (
        f"LoRA-FA {name}: {behind[name]} nats behind LoRA r=8 "
        f"({behind[name].value / whole:.0%} of its gain)"
    )
    return Finding(
        (
            Part(
                "parameters",
                "exact",
                judge_counts(found),
                f"{found['LoRA-FA']:,} of {found['LoRA']:,} on square matrices",
            ),
            Part(
                "little at twice the rank",
                "not worse",
                judge_not_worse(behind["r=16"], margin),
                said("r=16"),
            ),
            Part(
                "much at equal rank",
                "effect",
                judge_effect(behind["r=8, scaled"], margin),
                said("r=8, scaled"),
            ),
        ),
        {
            "counts": found,
            "behind": {name: interval_of(one.interval()) for name, one in behind.items()},
            "arms": {arm.name: arm.summary() for arm in (lora, *arms.values())},
        },
        note=f"Without PEFT's scaling: {said('r=8')}.",
        plot={
            "forest": {f"LoRA-FA {name}": forest_row(one) for name, one in behind.items()},
            "x": "loss above LoRA of rank 8, nats",
            "margin": margin,
        },
        seeds=lab.seeds,
        diverged=diverged_in((lora, *arms.values())),
    )
