"""N14: what tuning recovers at 2, 3 and 4 bits, and whether bytes are better spent on bits or on
rank.
"""

from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import difference, diverged_in, forest_row, interval_of, of_losses
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="N14",
    title="LoftQ and QPiSSA recover more than QLoRA at 2 to 4 bits, and a bit is worth more than its bytes of rank",
    source="LoftQ (arXiv 2310.08659), PiSSA (arXiv 2404.02948); new: at equal bytes",
    published="LoftQ and QPiSSA above QLoRA at equal bits and rank; nothing at equal bytes",
    expected="S on domain B. At 4, 3 and 2 bits each the loss of QLoRA of rank 8 is above that of LoftQ, and of QPiSSA, by a tenth or more of what the format costs before tuning. With one bit less and rank 11 (as many bytes in float32 factors, less 1 %) the loss is higher by a tenth or more of that cost, from 4 to 3 and from 3 to 2 bits",
    kind="trained",
    minutes=6.5,
    models="S",
    regime="100 steps of 16 sentences, all linear layers, normal float in blocks of 64, scales in 8 bits; each arm at its own best rate",
    distance="one step of LoftQ; GPTQ with LoRA is not tested; float32 factors, in bfloat16 a bit would buy rank 14",
    limits={"share": MARGIN},
)
BITS, STARTS, WIDER = (4, 3, 2), {"LoftQ": "loftq", "QPiSSA": "qpissa"}, 11


def run(lab):
    whole = lab.arm("float32", S)
    arms = {("QLoRA", k): lab.arm(f"QLoRA, {k} bits", S.quantised(f"nf{k}")) for k in BITS}
    for name, init in STARTS.items():
        for k in BITS:
            setting = S.quantised(f"nf{k}").with_(**{"lora.init": init})
            arms[name, k] = lab.arm(f"{name}, {k} bits", setting)
    for k in BITS[1:]:
        setting = S.quantised(f"nf{k}").with_(**{"lora.rank": WIDER})
        arms["wider", k] = lab.arm(f"QLoRA, {k} bits, rank {WIDER}", setting)

    cost = {
        k: of_losses([(1, arms["QLoRA", k].untuned), (-1, whole.untuned)], whole.weights)
        for k in BITS
    }
    matters = {k: MARGIN * max(found.value, 0.0) for k, found in cost.items()}
    judge = lambda found, k: judge_effect(found, matters[k])
    row = lambda found, k: forest_row(found, matters[k])
    parts, forest = [], {}
    for name in STARTS:
        ahead = {k: difference(arms["QLoRA", k], arms[name, k]) for k in BITS}
        verdict = judge_all([judge(found, k) for k, found in ahead.items()])
        said = "; ".join(
            f"{k} bits {found} ({_share(found, cost[k]):.0%} of the format's cost)"
            for k, found in ahead.items()
        )
        parts.append(Part(f"{name} recovers more", "effect", verdict, f"{name} ahead: {said}"))
        forest |= {f"QLoRA - {name}, {k} bits": row(found, k) for k, found in ahead.items()}
    bit = {k: difference(arms["wider", k], arms["QLoRA", k + 1]) for k in BITS[1:]}
    verdict = judge_all([judge(found, k) for k, found in bit.items()])
    said = "; ".join(f"{k} bits at rank {WIDER} behind {k + 1} at 8: {d}" for k, d in bit.items())
    parts.append(Part("a bit beats its bytes of rank", "effect", verdict, said))
    forest |= {f"{k} bits r={WIDER} - {k + 1} bits r=8": row(d, k) for k, d in bit.items()}

    kept = {arm.name: difference(arm, whole) for arm in arms.values()}
    every = [whole, *arms.values()]
    return Finding(
        tuple(parts),
        {
            "cost_before": {
                f"{k} bits": interval_of(found.interval()) for k, found in cost.items()
            },
            "above_float32_after": {n: interval_of(found.interval()) for n, found in kept.items()},
            "differences": {name: row["interval"] for name, row in forest.items()},
            "arms": {arm.name: arm.summary() for arm in every},
        },
        note="Before tuning the formats cost "
        + ", ".join(f"{found} at {k} bits" for k, found in cost.items())
        + "; after it QLoRA is above float32 by "
        + ", ".join(f"{kept[f'QLoRA, {k} bits']} at {k}" for k in BITS)
        + ".",
        plot={"forest": forest, "x": "difference of losses after tuning, nats"},
        seeds=lab.seeds,
        diverged=diverged_in(every),
    )


def _share(found, cost) -> float:
    return found.value / cost.value if cost.value > 0 else 0.0
