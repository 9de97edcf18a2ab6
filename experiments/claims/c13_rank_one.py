"""C13: rank 1 is enough for query and value together, but not for the query alone."""

from lora_jax import paired_bootstrap
from lora_jax.analysis.compare import judge_all
from lora_jax.claims import arms, small_model
from lora_jax.claims.examples import example_losses
from lora_jax.claims.protocol import Claim, Finding, compare, interval_of, shown

CLAIM = Claim(
    id="C13",
    title="Rank 1 is enough for query and value, not for the query alone",
    source="LoRA, Table 6",
    published="WikiSQL: Wq 68.8 to 70.5 at any rank; Wq, Wv 73.4 at rank 1, 73.8 at best",
    expected="S on domain B: q+v at rank 1 within 10 % of what the best q+v gains over the untuned model, and q alone worse at any rank than q+v at rank 1",
    kind="trained",
    tolerance={"share": 0.1},
)
RANKS = (1, 4, 16)


def run(lab):
    table = {t: {r: arms.lora_arm(lab, r, arms.projections(t), name=f"{t} r={r}") for r in RANKS} for t in ("q", "qv", "qkvo")}
    model, params = small_model.load(small_model.pretrained())
    before, weights = example_losses(model, small_model.test_split(), params, {})
    best = min(table["qv"].values(), key=lambda arm: arm.mean())
    gain = paired_bootstrap(before, best.losses()[0], weights=weights)
    missing, _ = compare(table["qv"][1], best)
    query = min(table["q"].values(), key=lambda arm: arm.mean())
    worse, each = compare(query, table["qv"][1])
    limit = CLAIM.tolerance["share"] * gain.value
    first = "reproduced" if missing.high < limit else "not reproduced" if missing.low > limit else "inconclusive"
    second = "reproduced" if worse.low > 0 and min(each) > 0 else "not reproduced" if worse.high < 0 else "inconclusive"
    loss = {t: {r: arm.mean() for r, arm in row.items()} for t, row in table.items()}
    return Finding(
        judge_all([first, second]),
        f"q+v at rank 1 misses {missing.value / gain.value:.0%} of the gain of q+v at its best ({best.name}); q alone ({query.name}) is {shown(worse)} above q+v at rank 1",
        {
            "loss": loss,
            "untuned_gain": interval_of(gain),
            "rank_1_misses": interval_of(missing),
            "query_behind": interval_of(worse),
            "arms": {a.name: a.summary() for row in table.values() for a in row.values()},
        },
        plot={"x": "rank", "y": "test loss, nats", "log": "x", "lines": {t: [[r, v] for r, v in row.items()] for t, row in loss.items()}},
        seeds=lab.seeds,
        diverged=tuple(d for row in table.values() for arm in row.values() for d in arm.diverged),
    )
