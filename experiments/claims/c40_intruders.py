"""C40: LoRA has intruder dimensions, full fine-tuning has none."""

import numpy as np

from lab import arms, small_model
from lab.examples import example_losses
from lab.inside import matrices
from lab.protocol import Claim, Finding, interval_of, shown
from lora_jax.analysis import find_intruders, scale_intruders
from lora_jax.core.paths import flatten, unflatten
from lora_jax.statistics import paired_bootstrap

CLAIM = Claim(
    id="C40",
    title="LoRA has intruder dimensions, full fine-tuning has none",
    source="LoRA vs Full Fine-tuning (arXiv 2410.21228)",
    published="none under full fine-tuning; fewer with rank and with alpha = 2r than with alpha = 8; scaling them down brings pretraining loss back at small cost",
    expected="S on domain B, top 10, threshold 0.5: full below 0.1 a matrix, LoRA above full; fewer at rank 64 than at 1; loss on A falls when intruders are scaled by 0.75, for less than 10 % of the gain on B",
    kind="trained",
    tolerance={"full": 0.1, "cost": 0.1},
)


def count(run) -> float:
    """Intruders a matrix."""
    return float(np.mean([len(find_intruders(m.weight, m.tuned)) for m in matrices(run)]))


def run(lab):
    found = {f"r={r}": arms.lora_arm(lab, r) for r in (1, 16, 64)} | {"full": arms.full_arm(lab)}
    found |= {
        f"r={r}, alpha = 2r": arms.lora_arm(
            lab, r, name=f"r={r}, alpha = 2r", **{"lora.alpha": 2.0 * r}
        )
        for r in (64,)
    }
    counts = {name: [count(run) for run in arm.runs if run.result] for name, arm in found.items()}
    mean = {name: float(np.mean(row)) for name, row in counts.items()}
    dice, chance = np.random.default_rng(0), []
    for m in matrices(found["r=16"].runs[0]):
        noise = dice.standard_normal((m.weight.shape[0], 16)) @ dice.standard_normal(
            (16, m.weight.shape[1])
        )
        chance.append(
            len(
                find_intruders(
                    m.weight, m.weight + noise * np.linalg.norm(m.update.s) / np.linalg.norm(noise)
                )
            )
        )
    model, params = small_model.load(small_model.pretrained())
    domains = {"A": small_model.held_out(), "B": small_model.test_split()}
    one = found["r=1"].runs[0]
    before = {n: example_losses(model, e, params, {}) for n, e in domains.items()}
    tuned = {
        n: example_losses(model, e, _weights(params, one, 1.0), {})[0] for n, e in domains.items()
    }
    scaled = {
        n: example_losses(model, e, _weights(params, one, 0.75), {})[0] for n, e in domains.items()
    }
    back = paired_bootstrap(tuned["A"], scaled["A"], weights=before["A"][1])
    gain = paired_bootstrap(before["B"][0], tuned["B"], weights=before["B"][1])
    cost = paired_bootstrap(scaled["B"], tuned["B"], weights=before["B"][1])
    parts = {
        "full has none": mean["full"] < CLAIM.tolerance["full"],
        "LoRA has more": mean["r=1"] > mean["full"] + 0.1,
        "fewer with rank": mean["r=64"] < mean["r=1"],
        "scaling helps A": back.low > 0,
        "at small cost": cost.value < CLAIM.tolerance["cost"] * gain.value,
    }
    return Finding(
        "reproduced"
        if all(parts.values())
        else "not reproduced"
        if not (parts["LoRA has more"] and parts["full has none"])
        else "inconclusive",
        "intruders a matrix: "
        + ", ".join(f"{n} {v:.2f}" for n, v in mean.items())
        + f"; random of the same norm {np.mean(chance):.2f}",
        {
            "intruders": counts,
            "random_same_norm_r16": float(np.mean(chance)),
            "parts": parts,
            "a_back": interval_of(back),
            "b_cost": interval_of(cost),
            "b_gain": interval_of(gain),
        },
        note="; ".join(f"{n}: {'yes' if v else 'no'}" for n, v in parts.items())
        + f". Scaling those of rank 1 by 0.75 lowers the loss on A by {shown(back)} and raises that on B by {shown(cost)} of a gain of {gain.value:.3f}.",
        seeds=lab.seeds,
        diverged=tuple(d for arm in found.values() for d in arm.diverged),
    )


def _weights(params, run, keep: float):
    """The tuned weights with the intruders of every matrix scaled."""
    flat = {path: np.array(w) for path, w in flatten(params).items()}
    for m in matrices(run):
        flat[m.path][m.layer] = scale_intruders(m.weight, m.tuned, keep=keep)
    return unflatten(flat)
