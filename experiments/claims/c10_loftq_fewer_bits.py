"""C10: LoftQ matters more, the fewer the bits."""

from lab.claim import Claim, Finding, Part
from lab.contrast import contrast, difference, diverged_in, forest_row, interval_of
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="C10",
    title="LoftQ helps, and more at fewer bits",
    source="LoftQ (arXiv 2310.08659)",
    published="Phi-2 on GSM8K at 4 bits: LoftQ 64.1, QLoRA 60.2; at 2 bits QLoRA may not converge",
    expected="S on domain B, rank 8: QLoRA's loss minus LoftQ's is above 0 and at least a tenth of what QLoRA gains on the untuned model, at 2 and at 4 bits each; and it is larger at 3 bits than at 4, and at 2 than at 3",
    kind="trained",
    minutes=6.5,
    models="S",
    regime="100 steps of 16 sentences, rank 8 on all linear layers, one step of LoftQ, normal float in blocks of 64; each arm at its own best rate",
    distance="a model of 1.5 M weights that loses little to 4 bits; the paper tunes Phi-2 and others for epochs",
    limits={"share": MARGIN},
)
BITS = (4, 3, 2)


def run(lab):
    pairs = {}
    for bits in BITS:
        base = S.quantised(f"nf{bits}")
        loftq = base.with_(**{"lora.init": "loftq"})
        pairs[bits] = (
            lab.arm(f"QLoRA, {bits} bits", base),
            lab.arm(f"LoftQ, {bits} bits", loftq),
        )
    gaps = {bits: difference(*pair) for bits, pair in pairs.items()}
    parts = []
    for bits in (4, 2):
        gain = pairs[bits][0].gain().value
        said = f"{bits} bits: {gaps[bits]} ({gaps[bits].value / gain:.1%} of QLoRA's gain)"
        verdict = judge_effect(gaps[bits], MARGIN * max(gain, 0.0))
        parts.append(Part(f"LoftQ helps at {bits} bits", "effect", verdict, said))
    for more, fewer in zip(BITS, BITS[1:]):
        (qlora, loftq), (before, start) = pairs[fewer], pairs[more]
        grown = contrast(((1.0, qlora), (-1.0, loftq), (-1.0, before), (1.0, start)))
        said = f"from {more} to {fewer} bits it grows by {grown}"
        says = f"more at {fewer} bits than at {more}"
        parts.append(Part(says, "effect", judge_effect(grown), said))
    arms = [arm for pair in pairs.values() for arm in pair]
    return Finding(
        tuple(parts),
        {
            "gap": {str(bits): interval_of(gap.interval()) for bits, gap in gaps.items()},
            "arms": {arm.name: arm.summary() for arm in arms},
        },
        plot={
            "forest": {f"{bits} bits": forest_row(gap) for bits, gap in gaps.items()},
            "x": "loss of QLoRA above LoftQ, nats",
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms),
    )
