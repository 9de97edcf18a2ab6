"""C10: LoftQ matters more, the fewer the bits."""

from lab import arms
from lab.protocol import Claim, Finding, compare, interval_of, shown
from lab.verdicts import judge_all, judge_effect

CLAIM = Claim(
    id="C10",
    title="LoftQ matters more at fewer bits",
    source="LoftQ (arXiv 2310.08659)",
    published="Phi-2 on GSM8K at 4 bits: LoftQ 64.1, QLoRA 60.2; at 2 bits QLoRA may not converge",
    expected="S on domain B, rank 16: loss of QLoRA minus loss of LoftQ above 0 at 4, 3 and 2 bits, and larger from each to the next",
    kind="trained",
    tolerance={"nats": 0.005},
)


def run(lab):
    pairs = {}
    for bits in (4, 3, 2):
        settings = {"method": "qlora", "quant.format": f"nf{bits}"}
        pairs[bits] = (
            arms.lora_arm(lab, 16, name=f"QLoRA {bits} bits", **settings),
            arms.lora_arm(lab, 16, name=f"LoftQ {bits} bits", **settings, **{"lora.init": "loftq"}),
        )
    gaps = {bits: compare(*pair) for bits, pair in pairs.items()}
    verdicts = [
        judge_effect(each, gap, tolerance=CLAIM.tolerance["nats"]) for gap, each in gaps.values()
    ]
    values = [gap.value for gap, _ in gaps.values()]
    verdicts.append("reproduced" if values == sorted(values) else "not reproduced")
    return Finding(
        judge_all(verdicts),
        "; ".join(f"{bits} bits {shown(gap)}" for bits, (gap, _) in gaps.items()),
        {
            "gap": {str(bits): interval_of(gap) for bits, (gap, _) in gaps.items()},
            "arms": {arm.name: arm.summary() for pair in pairs.values() for arm in pair},
        },
        seeds=lab.seeds,
        diverged=tuple(d for pair in pairs.values() for arm in pair for d in arm.diverged),
    )
