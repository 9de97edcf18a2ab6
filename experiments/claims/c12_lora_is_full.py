"""C12: LoRA is as good as full fine-tuning."""

from lora_jax import paired_bootstrap
from lora_jax.analysis.compare import judge_all
from lora_jax.claims import arms, small_model
from lora_jax.claims.examples import example_losses
from lora_jax.claims.protocol import Claim, Finding, compare, interval_of, shown

CLAIM = Claim(
    id="C12",
    title="LoRA is as good as full fine-tuning",
    source="LoRA, Table 2",
    published="GLUE average, RoBERTa-base: full 86.4, LoRA 87.2 with 0.3 M parameters",
    expected="S on domain B: loss of LoRA (rank 8, query and value; and everywhere) within 2 % of full fine-tuning's or below it, and below the untuned model's",
    kind="trained",
    tolerance={"relative": 0.02},
)


def run(lab):
    full = arms.full_arm(lab)
    loras = {"q+v": arms.lora_arm(lab, 8, "query+value", name="LoRA q+v"), "all": arms.lora_arm(lab, 8, name="LoRA all")}
    model, params = small_model.load(small_model.pretrained())
    before, weights = example_losses(model, small_model.test_split(), params, {})
    gains = {n: paired_bootstrap(before, a.losses()[0], weights=weights) for n, a in {"full": full, **loras}.items()}
    behind = {n: compare(a, full)[0] for n, a in loras.items()}
    limit = CLAIM.tolerance["relative"] * full.mean()
    verdicts = ["reproduced" if b.high < limit else "not reproduced" if b.low > limit else "inconclusive" for b in behind.values()]
    verdicts += ["reproduced" if g.low > 0 else "not reproduced" for g in gains.values()]
    share = {n: gains[n].value / gains["full"].value for n in loras}
    return Finding(
        judge_all(verdicts),
        f"full {full.mean():.3f}; " + ", ".join(f"LoRA {n} {shown(behind[n])} above it" for n in loras),
        {
            "behind_full": {n: interval_of(b) for n, b in behind.items()},
            "gain_on_untuned": {n: interval_of(g) for n, g in gains.items()},
            "share_of_gain": share,
            "arms": {a.name: a.summary() for a in (full, *loras.values())},
        },
        note="Of what full fine-tuning gains in 100 steps, LoRA reaches "
        + ", ".join(f"{s:.0%} ({n})" for n, s in share.items())
        + ": a relative loss flatters small gains.",
        seeds=lab.seeds,
        diverged=tuple(d for arm in (full, *loras.values()) for d in arm.diverged),
    )
