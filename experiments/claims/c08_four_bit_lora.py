"""C8: LoRA over a 4-bit base reaches LoRA over the full-precision one."""

from lab.claim import Claim, Finding, Part
from lab.contrast import contrast, difference, diverged_in, forest_row, interval_of, of_losses
from lab.protocol import MARGIN
from lab.setting import MINILM, S
from lab.verdicts import judge_effect, judge_equal

CLAIM = Claim(
    id="C8",
    title="LoRA over NF4 equals LoRA over full precision, FP4 is slightly behind",
    source="QLoRA, Tables 3 and 4",
    published="mean MMLU: BF16 53.0, NF4 + DQ 53.1, FP4 52.2",
    expected="after tuning, LoRA of rank 8 over NF4 is within a tenth of what LoRA over float32 gains on the untuned model, on S and on MiniLM; over FP4 (bitsandbytes) the loss of S is above that over NF4, by however little ('slightly')",
    kind="trained",
    minutes=13,
    models="S and MiniLM",
    regime="100 steps of 16 sentences, rank 8 on all linear layers, blocks of 64 with scales in 8 bits; each arm at its own best rate",
    distance="models of 1.5 and 23 M weights that lose little to four bits; the paper's arms share one rate",
    limits={"share": MARGIN},
)


def run(lab):
    whole = lab.arm("float32", S)
    others = {name: lab.arm(name, S.quantised(name)) for name in ("int8", "nf4", "fp4")}
    encoder = lab.arm("MiniLM, float32", MINILM)
    encoder_nf4 = lab.arm("MiniLM, nf4", MINILM.quantised("nf4"))

    parts, forest = [], {}
    for model, plain, nf4 in (("S", whole, others["nf4"]), ("MiniLM", encoder, encoder_nf4)):
        behind, gain = difference(nf4, plain), plain.gain().value
        said = f"{model}: NF4 {behind} behind float32 ({behind.value / gain:.1%} of its gain)"
        verdict = judge_equal(behind, MARGIN * gain)
        parts.append(Part(f"{model}, NF4 equals float32", "equal", verdict, said))
        forest[f"{model}, NF4 - float32"] = forest_row(behind)
    last = difference(others["fp4"], others["nf4"])
    parts.append(
        Part("S, FP4 behind NF4", "effect", judge_effect(last), f"S: FP4 {last} behind NF4")
    )
    forest["S, FP4 - NF4"] = forest_row(last)
    forest["S, Int8 - float32"] = forest_row(difference(others["int8"], whole))

    # What the format costs before tuning, and what of that is left.
    untuned = lambda arm: of_losses([(1, arm.untuned), (-1, whole.untuned)], whole.weights)
    kept = {
        name: (untuned(arm), contrast(((1.0, arm), (-1.0, whole)))) for name, arm in others.items()
    }
    aside = {arm.name: lab.after(arm, "A") for arm in (whole, others["nf4"])}
    (nf4, weights), (plain, _) = aside["nf4"], aside["float32"]
    on_a = of_losses([(1, nf4), (-1, plain)], weights)
    arms = (whole, *others.values(), encoder, encoder_nf4)
    return Finding(
        tuple(parts),
        {
            "differences": {name: row["interval"] for name, row in forest.items()},
            "damage_before_and_after": {
                name: [interval_of(each.interval()) for each in pair] for name, pair in kept.items()
            },
            "domain_a_nf4_above_float32": interval_of(on_a.interval()),
            "arms": {arm.name: arm.summary() for arm in arms},
        },
        note="What S loses to the format before tuning, and what is left of it after: "
        + "; ".join(f"{name} {before}, {after}" for name, (before, after) in kept.items())
        + f". On domain A, which it was not tuned on, the tuned model over NF4 is {on_a} above the one over float32: what tuning wins back on its own domain does not say what is lost elsewhere.",
        plot={
            "forest": forest,
            "x": "difference of losses after tuning, nats",
            "margin": MARGIN * whole.gain().value,
        },
        seeds=lab.seeds,
        diverged=diverged_in(arms),
    )
