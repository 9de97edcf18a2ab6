"""C11: QA-LoRA's update folds into the zeros of a quantised weight; QLoRA's must be quantised
again.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lab import small_model
from lab.examples import example_losses
from lab.protocol import Claim, Finding, interval_of, shown, with_
from lab.weights import minilm_matrices
from lora_jax import LoraSpec, QuantSpec, quantize
from lora_jax.core import fold_into_zeros
from lora_jax.core.init import initialize
from lora_jax.statistics import paired_bootstrap

CLAIM = Claim(
    id="C11",
    title="QA-LoRA merges exactly, QLoRA does not",
    source="QA-LoRA (arXiv 2309.14717), section 3.3",
    published="the merged model stays in INT4; QLoRA loses when it is quantised after merging",
    expected="largest difference between merged and unmerged outputs below 1e-5 of the largest output; a trained QLoRA adapter merged and quantised again to NF4 changes the loss (interval without 0)",
    kind="exact",
    tolerance={"relative": 1e-5},
)


def merge_error() -> float:
    """The largest difference of outputs, merged against unmerged, over the largest output; all
    matrices of MiniLM, INT4 groups of 32.
    """
    worst = 0.0
    spec = LoraSpec(rank=8, variant="qa_lora", group_size=32)
    for path, w in minilm_matrices().items():
        stack, rows, out = w.shape[:1], *w.shape[1:]
        low = initialize(jax.random.key(len(path)), stack, rows, out, spec)
        low = low.replace(b=0.02 * jax.random.normal(jax.random.key(1), low.b.shape))
        stored = quantize(jnp.asarray(w), QuantSpec("int4_asym", 32, double=False))
        x = jax.random.normal(jax.random.key(2), (*stack, 64, rows))
        apart = x @ stored.matrix(jnp.float32) + ((x @ low.moving().a) * low.scale[:, None]) @ low.b
        merged = x @ fold_into_zeros(stored, low).matrix(jnp.float32)
        worst = max(worst, float(jnp.abs(merged - apart).max() / jnp.abs(apart).max()))
    return worst


def requantised_change(lab):
    """The change in loss when a trained QLoRA adapter is merged and the sum quantised again to NF4,
    on domain B.
    """
    from lora_jax.training.saved import load_run

    folder = small_model.pretrained()
    config = with_(small_model.tuning(folder), **{"method": "qlora", "quant.format": "nf4"})
    saved = load_run(lab.run(config).folder)
    from lora_jax.adapters.merge import merge

    merged = merge(saved.frozen, saved.trainable)[0]
    again = small_model.quantized(
        saved.task.model, jax.tree.map(np.asarray, merged), QuantSpec("nf4", 64, True)
    )
    test = saved.task.splits["test"]
    before, weights = example_losses(saved.task.model, test, saved.frozen, saved.trainable)
    after, _ = example_losses(saved.task.model, test, again, {})
    return paired_bootstrap(after, before, weights=weights)


def run(lab):
    error = merge_error()
    change = requantised_change(lab)
    exact = error < CLAIM.tolerance["relative"]
    return Finding(
        "reproduced"
        if exact and change.excludes_zero()
        else "not reproduced"
        if not exact
        else "inconclusive",
        f"merged differs by {error:.1e}; QLoRA merged and quantised again: {shown(change, 4)} nats",
        {"largest_relative_difference": error, "requantised_loss_change": interval_of(change)},
        note="The first half is algebra on all 36 matrices of MiniLM; the second a rank-8 adapter on S over NF4, domain B.",
        seeds=(0,),
    )
