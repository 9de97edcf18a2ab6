"""N16: whether variants of LoRA differ at all once each has its own learning rate."""

import numpy as np

from lab.claim import Claim, Finding, Part
from lab.contrast import difference, diverged_in, interval_of
from lab.protocol import MARGIN
from lab.setting import FULL, S
from lab.verdicts import judge_effect, judge_equal

CLAIM = Claim(
    id="N16",
    title="With tuned rates rsLoRA, DoRA, PiSSA, MiLoRA, LoRA+ and LoRA-GA lie within a tenth of LoRA's gain, at ranks 8 and 64",
    source="arXiv 2602.04998 and 2601.22708, against the variants' own papers",
    published="with tuned rates all variants reach the same within 1-2 %; their own papers, mostly at one rate and one seed, have them points ahead",
    expected="S, all linear layers, ranks 8 and 64, each variant at its own best rate: its test loss is equal to that of LoRA of the same rank within 2 % of that loss and within a tenth of what LoRA gains on the untuned model, whichever is less",
    kind="trained",
    minutes=16,
    models="S",
    regime="100 steps of 16 sentences at a constant rate, alpha 16; LoRA+ at the advised ratio 16; LoRA-GA by 8 batches; five scored seeds on three pretrainings, rates tuned under two others",
    distance="width 160, one task",
    limits={"loss": 0.02, "share": MARGIN},
)
RANKS = (8, 64)
# LoRA stands in the middle: made-up worlds give each setting and the fifth after it one outcome.
VARIANTS = {
    "rsLoRA": {"lora.scaling": "rslora"},
    "DoRA": {"lora.dora": True},
    "LoRA": {},
    "PiSSA": {"lora.init": "pissa"},
    "LoRA+": {"optim.lora_plus_ratio": 16.0},
    "LoRA-GA": {"lora.init": "lora_ga"},
    "MiLoRA": {"lora.init": "milora"},
}


def arms_of(lab, rank):
    """Every variant at its own best rate."""
    at = {} if rank == 8 else {"lora.rank": rank}
    return {
        name: lab.arm(f"{name} r={rank}", S.with_(**at, **changes))
        for name, changes in VARIANTS.items()
    }


def ahead_at_one_rate(arm, lora):
    """(rate, LoRA's validation loss less the variant's) under the tuning seeds, at rates that both
    were tried at, up to LoRA's best.
    """
    both = sorted(rate for rate in set(arm.tuning) & set(lora.tuning) if rate <= lora.rate)
    found = [[rate, lora.tuning[rate] - arm.tuning[rate]] for rate in both]
    return [row for row in found if np.isfinite(row[1])]


def compared(arm, lora, margin):
    """What a result file says of a variant beside LoRA."""
    found, loss, gain = difference(arm, lora), lora.mean(), lora.gain().value
    share = lambda whole: [x / whole for x in interval_of(found.interval(0.9))]
    return {
        "less_lora": interval_of(found.interval()),
        "by_seed": found.by_seed,
        "p": found.p,
        "share_of_loss_90": share(loss),
        "share_of_gain_90": share(gain),
        "within_2_percent_of_loss": judge_equal(found, CLAIM.limits["loss"] * loss),
        "within_a_tenth_of_gain": judge_equal(found, CLAIM.limits["share"] * gain),
        "better_by_a_tenth_of_gain": judge_effect(difference(lora, arm), margin),
        "rate_over_loras": arm.rate / lora.rate,
        "ahead_at_one_rate": ahead_at_one_rate(arm, lora),
    }


def note_of(figures, near, ahead, lora, full):
    """What stands below the verdicts."""
    share = CLAIM.limits["loss"] * lora.mean() / lora.gain().value
    leads = [
        (gain, rate, says)
        for says, row in figures.items()
        for rate, gain in row["ahead_at_one_rate"]
    ]
    most = max(leads, default=(0.0, lora.rate, "none"))
    return (
        "Brackets are 90 % intervals over seeds and examples. Within the sources' own 2 % of the "
        f"loss lie {len(near)} of {len(figures)}; but 2 % of the loss are {share:.0%} of all that "
        "training gains here, so that this alone says little. "
        + (
            f"Better by a tenth of the gain: {', '.join(ahead)}. "
            if ahead
            else "None is better by a tenth of the gain. "
        )
        + "At one rate for both, up to LoRA's best, the largest lead is that of "
        f"{most[2]}: {most[0]:.3f} nats at {most[1]:.2g} (LoRA's best is {lora.rate:.2g} at rank "
        "8; validation loss under the two tuning seeds). Full fine-tuning of the same matrices is "
        f"{difference(lora, full)} nats below LoRA of rank 8."
    )


def run(lab):
    parts, figures, forest, every, margins = [], {}, {}, [], {}
    for rank in RANKS:
        arms = arms_of(lab, rank)
        lora, every = arms["LoRA"], [*every, *arms.values()]
        limits = (
            CLAIM.limits["loss"] * lora.mean(),
            CLAIM.limits["share"] * lora.gain().value,
        )
        margin = margins[rank] = min(limits)
        for name in VARIANTS:
            if name == "LoRA":
                continue
            says, found = f"{name}, rank {rank}", difference(arms[name], lora)
            row = figures[says] = compared(arms[name], lora, margin)
            part = row["share_of_gain_90"]
            ours = (
                f"{says}: {found.value:+.3f} nats ({found.value / lora.mean():+.1%} of the loss, "
                f"{part[0]:+.0%} [{part[1]:+.0%}, {part[2]:+.0%}] of the gain)"
            )
            parts.append(Part(says, "equal", judge_equal(found, margin), ours))
            forest[says] = {"interval": row["less_lora"], "seeds": found.by_seed}
    full, lora = lab.arm("full", S.with_(**FULL)), every[list(VARIANTS).index("LoRA")]
    with_verdict = lambda key: [says for says, row in figures.items() if row[key] == "reproduced"]
    near, ahead = map(with_verdict, ("within_2_percent_of_loss", "better_by_a_tenth_of_gain"))
    return Finding(
        tuple(parts),
        {
            "less_lora": figures,
            "margins": {str(rank): margin for rank, margin in margins.items()},
            "within_2_percent_of_loss": near,
            "better_by_a_tenth_of_gain": ahead,
            "arms": {arm.name: arm.summary() for arm in (*every, full)},
        },
        note=note_of(figures, near, ahead, lora, full),
        plot={
            "forest": forest,
            "x": "loss less LoRA's of the same rank, nats",
            "margin": min(margins.values()),
        },
        seeds=lab.seeds,
        diverged=diverged_in((*every, full)),
    )
