"""C11: QA-LoRA's update folds into the zeros of a quantised weight; QLoRA's must be quantised
again.
"""

import jax
import jax.numpy as jnp

from lab.changes import Merged
from lab.claim import Claim, Finding, Part
from lab.contrast import forest_row, interval_of, of_losses, shown
from lab.setting import S
from lab.verdicts import judge_effect
from lora_jax import LoraSpec, QuantSpec, quantize
from lora_jax.core import fold_into_zeros
from lora_jax.core.init import initialize

CLAIM = Claim(
    id="C11",
    title="QA-LoRA merges exactly, QLoRA does not",
    source="QA-LoRA (arXiv 2309.14717), section 3.3",
    published="the merged model stays in INT4; QLoRA loses when it is quantised after merging",
    expected="largest difference between merged and unmerged outputs below 1e-5 of the largest output, over all matrices of MiniLM; trained QLoRA adapters on S, merged and quantised again to NF4, have a higher loss (interval above 0)",
    kind="trained",
    minutes=1,
    models="MiniLM's weights (algebra), S (loss)",
    regime="INT4 groups of 32; NF4 in blocks of 64, rank 8, 100 steps",
    distance="the second half is an effect on a model of 1.5 M weights, by any amount above 0",
    limits={"relative": 1e-5},
)


def merge_error(matrices) -> float:
    """The largest difference of outputs, merged against unmerged, over the largest output; INT4
    groups of 32.
    """
    worst = 0.0
    for path, w in matrices.items():
        stack, rows, out = w.shape[:1], *w.shape[1:]
        # No more columns than groups of inputs can differ.
        spec = LoraSpec(rank=min(8, rows // 32), variant="qa_lora", group_size=32)
        low = initialize(jax.random.key(len(path)), stack, rows, out, spec)
        low = low.replace(b=0.02 * jax.random.normal(jax.random.key(1), low.b.shape))
        stored = quantize(jnp.asarray(w), QuantSpec("int4_asym", 32, double=False))
        x = jax.random.normal(jax.random.key(2), (*stack, 64, rows))
        apart = x @ stored.matrix(jnp.float32) + ((x @ low.moving().a) * low.scale[:, None]) @ low.b
        merged = x @ fold_into_zeros(stored, low).matrix(jnp.float32)
        worst = max(worst, float(jnp.abs(merged - apart).max() / jnp.abs(apart).max()))
    return worst


def judge_exact(error: float):
    """The verdict on a relative difference: rounding or not."""
    return "reproduced" if error < CLAIM.limits["relative"] else "not reproduced"


def run(lab):
    error = merge_error(lab.matrices_of("minilm"))
    arm = lab.arm("QLoRA", S.quantised("nf4"))
    before, weights = lab.after(arm, "B")
    after, _ = lab.after(arm, "B", Merged(again=True))
    change = of_losses([(1, after), (-1, before)], weights)
    share = change.value / arm.gain().value
    return Finding(
        (
            Part(
                "QA-LoRA merges to rounding",
                "exact",
                judge_exact(error),
                f"QA-LoRA merged differs by {error:.1e}",
            ),
            Part(
                "QLoRA quantised again loses",
                "effect",
                judge_effect(change),
                f"QLoRA merged and quantised again: {shown(change.interval(), 4)} nats ({share:.1%} of its gain)",
            ),
        ),
        {
            "largest_relative_difference": error,
            "requantised_loss_change": interval_of(change.interval()),
            "share_of_gain": share,
            "arm": arm.summary(),
        },
        plot={
            "forest": {"QLoRA merged, NF4 again": forest_row(change)},
            "x": "loss above the unmerged adapter's, nats",
        },
        seeds=lab.seeds,
        diverged=arm.diverged,
    )
