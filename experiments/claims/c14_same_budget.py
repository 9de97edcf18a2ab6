"""C14: for one budget, more matrices are better than more rank."""

from scipy import stats

from lab import arms
from lab.protocol import Claim, Finding, compare, interval_of, shown

CLAIM = Claim(
    id="C14",
    title="For one budget, more kinds of matrices beat more rank",
    source="LoRA, Table 5",
    published="WikiSQL at 18 M parameters: q 70.4, k 70.0, v 73.0, o 73.2, q+k 71.4, q+v 73.7, all four 73.7",
    expected="S on domain B, 16,384 parameters each: Spearman correlation of the gain with the published column 0.6 or more, and q or k alone the worst",
    kind="trained",
    tolerance={"spearman": 0.6},
)
PUBLISHED = {"q": 70.4, "k": 70.0, "v": 73.0, "o": 73.2, "qk": 71.4, "qv": 73.7, "qkvo": 73.7}


def run(lab):
    found = {
        t: arms.lora_arm(lab, 16 // len(t), arms.projections(t), name=f"{t} r={16 // len(t)}")
        for t in PUBLISHED
    }
    budgets = {
        arm.runs[0].result.trainable_parameters for arm in found.values() if arm.runs[0].result
    }
    if len(budgets) != 1:
        raise ValueError(f"The arms of C14 must have one budget, got {budgets}.")
    loss = {t: arm.mean() for t, arm in found.items()}
    spearman = stats.spearmanr([PUBLISHED[t] for t in found], [-loss[t] for t in found]).statistic
    worst = max(loss, key=loss.__getitem__)
    gap, _ = compare(found[worst], found["qv"])
    return Finding(
        "reproduced"
        if spearman >= CLAIM.tolerance["spearman"] and worst in ("q", "k")
        else "not reproduced"
        if spearman < 0.2
        else "inconclusive",
        (
            f"Spearman {spearman:.2f}; from best to worst "
            f"{', '.join(sorted(loss, key=loss.__getitem__))}; the worst is {shown(gap)} above q+v"
        ),
        {
            "spearman": spearman,
            "loss": loss,
            "worst_behind_qv": interval_of(gap),
            "arms": {a.name: a.summary() for a in found.values()},
        },
        seeds=lab.seeds,
        diverged=tuple(d for arm in found.values() for d in arm.diverged),
    )
