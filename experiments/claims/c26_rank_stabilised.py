"""C26: alpha / r starves high ranks of gradient, alpha / sqrt(r) does not; and what is left when
rates are tuned.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lab import arms, small_model
from lab.protocol import Claim, Finding, Reason, compare, interval_of, shown, with_
from lab.verdicts import judge_all
from lora_jax import LoraSpec
from lora_jax.core.init import initialize

CLAIM = Claim(
    id="C26",
    title="alpha / r stunts high ranks, alpha / sqrt(r) does not",
    source="rsLoRA, Kalajdzievski 2023 (arXiv 2312.03732), Theorem 3.2 and Figures 2-3",
    published="same final loss for all ranks under alpha / r; better with rank, and a gradient that does not collapse, under alpha / sqrt(r)",
    expected="slope of log gradient of b over log rank at step 1 in [-0.6, -0.4] under alpha / r and [-0.1, 0.1] under alpha / sqrt(r); on S at one rate, spread of the loss over ranks 4, 16, 64 below 2 % under alpha / r, and falling under alpha / sqrt(r)",
    kind="exact",
    tolerance={"slope": 0.1, "spread": 0.02},
)
RANKS = (1, 4, 16, 64, 256)
TUNED = (4, 16, 64)


def first_step(scaling: str, rank: int, d: int = 384) -> float:
    """The norm of the gradient of b at the first step, for a (d, d) matrix, a rank-8 target and
    normal inputs; mean of 8 starts.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    goal = jax.random.normal(keys[0], (d, 8)) @ jax.random.normal(keys[1], (8, d)) / d
    x = jax.random.normal(keys[2], (256, d))

    def loss(b, low):
        return 0.5 * ((x @ ((low.a * low.scale) @ b) - x @ goal) ** 2).mean()

    norms = []
    for seed in range(8):
        low = initialize(
            jax.random.key(10 + seed), (), d, d, LoraSpec(rank=rank, alpha=16.0, scaling=scaling)
        )
        norms.append(float(jnp.linalg.norm(jax.grad(loss)(low.b, low))))
    return float(np.mean(norms))


def slope(scaling: str) -> tuple[float, list[list[float]]]:
    """(slope of log norm over log rank, the points)."""
    points = [[rank, first_step(scaling, rank)] for rank in RANKS]
    return float(np.polyfit(np.log(RANKS), np.log([norm for _, norm in points]), 1)[0]), points


def smaller_rate(lab, base) -> Reason:
    """Whether the one rate is above the best for rank 64 under alpha / sqrt(r): the same ranks at a
    third of it.
    """
    row = [
        lab.fixed(
            f"rslora r={r}, 1e-3",
            with_(base, **{"lora.rank": r, "lora.scaling": "rslora", "optim.learning_rate": 1e-3}),
        )
        for r in TUNED
    ]
    falls, each = compare(row[0], row[-1])
    loss = [arm.mean() for arm in row]
    return Reason(
        (
            "the rate 3.16e-3 is LoRA's best and too large for high ranks under alpha / sqrt(r), "
            "whose best is 1e-3; at 1e-3 the loss should fall with rank"
        ),
        (
            f"ranks {', '.join(map(str, TUNED))} then reach {', '.join(f'{v:.3f}' for v in loss)}; "
            f"rank 4 to 64 gains {shown(falls)}"
        ),
        falls.low > 0 and min(each) > 0 and loss == sorted(loss, reverse=True),
        {"loss": loss, "gain_r4_to_r64": interval_of(falls), "by_seed": each},
    )


def run(lab):
    slopes, points = {}, {}
    for scaling in ("standard", "rslora"):
        slopes[scaling], points[scaling] = slope(scaling)
    exact = abs(slopes["standard"] + 0.5) <= 0.1 and abs(slopes["rslora"]) <= 0.1
    base = small_model.tuning(small_model.pretrained(), **{"optim.learning_rate": 3.16e-3})
    fixed = {
        s: [
            lab.fixed(f"{s} r={r}", with_(base, **{"lora.rank": r, "lora.scaling": s}))
            for r in TUNED
        ]
        for s in slopes
    }
    loss = {scaling: [arm.mean() for arm in row] for scaling, row in fixed.items()}
    spread = (max(loss["standard"]) - min(loss["standard"])) / min(loss["standard"])
    falls, each = compare(fixed["rslora"][0], fixed["rslora"][-1])
    trained = (
        "reproduced"
        if spread < CLAIM.tolerance["spread"] and falls.low > 0 and min(each) > 0
        else "not reproduced"
        if falls.high < 0 or spread > 2 * CLAIM.tolerance["spread"]
        else "inconclusive"
    )
    tuned = [arms.lora_arm(lab, 64, name=f"{s} r=64", **{"lora.scaling": s}) for s in slopes]
    gap, _ = compare(*tuned)
    reason = smaller_rate(lab, base)
    return Finding(
        judge_all(["reproduced" if exact else "not reproduced", trained]),
        (
            f"slopes {slopes['standard']:.2f} and {slopes['rslora']:.2f}; at one rate {spread:.1%} "
            f"spread under alpha / r, rank 4 to 64 gains {shown(falls)} under alpha / sqrt(r)"
        ),
        {
            "slopes": slopes,
            "fixed_rate_loss": loss,
            "spread": spread,
            "gain_rslora_r4_to_r64": interval_of(falls),
            "tuned_gap_r64": interval_of(gap),
            "arms": {a.name: a.summary() for a in tuned},
            "reason": reason.entry(),
        },
        note=f"Second arm, rates tuned: at rank 64 alpha / r minus alpha / sqrt(r) is {shown(gap)} nats; rsLoRA at one rate is a larger rate for high ranks."
        + reason.text,
        plot={
            "x": "rank",
            "y": "gradient of b at step 1",
            "log": "xy",
            "lines": {
                f"alpha / {'r' if s == 'standard' else 'sqrt(r)'}": p for s, p in points.items()
            },
        },
        seeds=lab.seeds,
        diverged=tuple(d for row in fixed.values() for arm in row for d in arm.diverged),
    )
