"""C12: LoRA is as good as full fine-tuning."""

from lab import arms, small_model
from lab.examples import example_losses
from lab.protocol import Claim, Finding, Reason, compare, interval_of, shown
from lab.verdicts import judge_all
from lora_jax.statistics import paired_bootstrap

CLAIM = Claim(
    id="C12",
    title="LoRA is as good as full fine-tuning",
    source="LoRA, Table 2",
    published="GLUE average, RoBERTa-base: full 86.4, LoRA 87.2 with 0.3 M parameters",
    expected="S on domain B: loss of LoRA (rank 8, query and value; and everywhere) within 2 % of full fine-tuning's or below it, and below the untuned model's",
    kind="trained",
    tolerance={"relative": 0.02},
)


def with_embedding(lab, full, gap: float, limit: float) -> Reason:
    """Whether LoRA misses the tied embedding, which full fine-tuning trains, rather than rank."""
    tied, wide = (
        arms.lora_arm(lab, 8, arms.WITH_EMBEDDING, name="LoRA all and embedding"),
        arms.lora_arm(lab, 64),
    )
    left, at_64 = compare(tied, full)[0], compare(wide, full)[0]
    return Reason(
        (
            "full fine-tuning trains the tied embedding too, and domain B has other words, "
            "spelling and case; with factors of rank 8 on the embedding as well, over half of the "
            "gap of LoRA on all linear layers should close"
        ),
        (
            f"{shown(left)} above full with the embedding, against {gap:.3f} without "
            f"({1 - left.value / gap:.0%} of the gap; the claim's 2 % are {limit:.3f}); rank 64 "
            f"without it stays {shown(at_64)} above"
        ),
        left.high < gap / 2,
        {
            "behind_full": interval_of(left),
            "rank_64_behind_full": interval_of(at_64),
            "arms": {a.name: a.summary() for a in (tied, wide)},
        },
    )


def run(lab):
    full = arms.full_arm(lab)
    loras = {
        "q+v": arms.lora_arm(lab, 8, "query+value", name="LoRA q+v"),
        "all": arms.lora_arm(lab, 8, name="LoRA all"),
    }
    model, params = small_model.load(small_model.pretrained())
    before, weights = example_losses(model, small_model.test_split(), params, {})
    gains = {
        n: paired_bootstrap(before, a.losses()[0], weights=weights)
        for n, a in {"full": full, **loras}.items()
    }
    behind = {n: compare(a, full)[0] for n, a in loras.items()}
    limit = CLAIM.tolerance["relative"] * full.mean()
    verdicts = [
        "reproduced" if b.high < limit else "not reproduced" if b.low > limit else "inconclusive"
        for b in behind.values()
    ]
    verdicts += ["reproduced" if g.low > 0 else "not reproduced" for g in gains.values()]
    share = {n: gains[n].value / gains["full"].value for n in loras}
    reason = with_embedding(lab, full, behind["all"].value, limit)
    return Finding(
        judge_all(verdicts),
        f"full {full.mean():.3f}; "
        + ", ".join(f"LoRA {n} {shown(behind[n])} above it" for n in loras),
        {
            "behind_full": {n: interval_of(b) for n, b in behind.items()},
            "gain_on_untuned": {n: interval_of(g) for n, g in gains.items()},
            "share_of_gain": share,
            "arms": {a.name: a.summary() for a in (full, *loras.values())},
            "reason": reason.entry(),
        },
        note="Of what full fine-tuning gains in 100 steps, LoRA reaches "
        + ", ".join(f"{s:.0%} ({n})" for n, s in share.items())
        + ": a relative loss flatters small gains."
        + reason.text,
        seeds=lab.seeds,
        diverged=tuple(d for arm in (full, *loras.values()) for d in arm.diverged),
    )
