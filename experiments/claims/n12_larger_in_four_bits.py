"""N12: a larger model in 4 bits beats a smaller one in 16."""

from lab.changes import Stored
from lab.claim import Claim, Finding, Part
from lab.contrast import difference, diverged_in, forest_row, interval_of, of_losses
from lab.protocol import MARGIN
from lab.setting import Setting
from lab.small_model import SmallModel, linear_bits
from lab.verdicts import judge_effect

CLAIM = Claim(
    id="N12",
    title="A larger 4-bit model beats a smaller 16-bit one of more bits",
    source="The case for 4-bit precision (arXiv 2212.09720), Figure 1; QLoRA, section 3",
    published="at a fixed total of bits, 4 bits and more weights are better than 16 bits and fewer; untuned models",
    expected="S of width 96 in NF4 (59 % of the bits) against width 64 in 16 bits, and of width 160 in NF4 (72 %) against width 96: lower loss before tuning, and after LoRA of rank 8, by a tenth or more of what the smaller one gains by tuning",
    kind="trained",
    minutes=3,
    models="S of widths 64, 96 and 160",
    regime="bits of the linear layers; three pretrainings of 3,600 steps, then 100 steps of 16 sentences, each arm at its own best rate",
    distance="0.2 to 1.3 M weights in linear layers; 16 bits are taken as float32's loss; the embedding is not counted and not quantised",
    limits={"share": MARGIN},
)
PAIRS = ((96, 64), (160, 96))
NF4 = Stored("nf4")


def run(lab):
    of_width = {width: Setting(SmallModel(width=width)) for width in (64, 96, 160)}
    before = {width: lab.in_formats(setting, [NF4]) for width, setting in of_width.items()}
    small_arms = {w: lab.arm(f"width {w}, 16 bits", of_width[w]) for w in (64, 96)}
    large_arms = {w: lab.arm(f"width {w}, NF4", of_width[w].quantised("nf4")) for w in (96, 160)}

    parts, figures, forest = [], {}, {}
    for large, small in PAIRS:
        (many, weights), (few, _) = before[large], before[small]
        ahead = of_losses([(1, few[None]), (-1, many[NF4])], weights)
        width = of_losses([(1, few[None]), (-1, many[None])], weights)
        after = difference(small_arms[small], large_arms[large])
        gain = small_arms[small].gain().value
        share = linear_bits(SmallModel(large), NF4.spec) / linear_bits(SmallModel(small), None)
        pair = f"width {large} in NF4 over width {small} in 16 bits"
        for when, found in (("untuned", ahead), ("tuned", after)):
            verdict = judge_effect(found, MARGIN * gain)
            said = f"{pair}, {when}: ahead by {found}"
            parts.append(Part(f"{pair}, {when}", "effect", verdict, said))
            row = forest_row(found)
            forest[f"{pair}, {when}"] = row
        figures[pair] = {
            "share_of_bits": share,
            "untuned": interval_of(ahead.interval()),
            "width_alone": interval_of(width.interval()),
            "tuned": interval_of(after.interval()),
        }
    arms = [*small_arms.values(), *large_arms.values()]
    return Finding(
        tuple(parts),
        figures | {"arms": {arm.name: arm.summary() for arm in arms}},
        plot={"forest": forest, "x": "loss of the smaller model above the larger one, nats"},
        seeds=lab.seeds,
        diverged=diverged_in(arms),
    )
