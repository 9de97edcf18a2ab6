"""C3: storing the scales in 8 bits costs nothing, and brings 4.127 bits a weight."""

import math

import jax.numpy as jnp
import numpy as np

from lab import small_model
from lab.examples import example_losses
from lab.protocol import Claim, Finding, interval_of, shown
from lab.verdicts import judge_all, judge_equal
from lab.weights import minilm_matrices
from lora_jax import QuantSpec, bytes_of, quantize
from lora_jax.analysis.quantisation import rms_error
from lora_jax.statistics import paired_bootstrap

CLAIM = Claim(
    id="C3",
    title="Double quantisation is free",
    source="QLoRA, section 3",
    published="8/64 + 32/(64 * 256) bits a weight for the scales, not 0.5: 0.373 saved; no loss",
    expected="exactly 4 + 8/64 + 32/(64 * 256) bits a weight from the stored arrays of MiniLM (one float32 mean a matrix besides); perplexity of S within 0.2 %",
    kind="exact",
    tolerance={"perplexity": 0.002},
)
BITS = 4 + 8 / 64 + 32 / (64 * 256)


def bits() -> tuple[float, float]:
    """(bits a weight of MiniLM's matrices without the one mean a matrix, bits with it), counted
    from the arrays.
    """
    stored = {
        path: quantize(jnp.asarray(w), QuantSpec("nf4", 64, True))
        for path, w in minilm_matrices().items()
    }
    weights = sum(q.size for q in stored.values())
    means = sum(q.scale.offset.nbytes for q in stored.values())
    total = sum(bytes_of(q) for q in stored.values())
    return 8 * (total - means) / weights, 8 * total / weights


def gaussian_change() -> float:
    """Relative change of the RMS error of NF4 on a million normal numbers."""
    samples = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)
    plain, double = (rms_error(samples, QuantSpec("nf4", 64, double)) for double in (False, True))
    return double / plain - 1


def run(lab):
    without, with_means = bits()
    model, params = small_model.load(small_model.pretrained())
    held = small_model.held_out()
    losses = {
        d: example_losses(
            model, held, small_model.quantized(model, params, QuantSpec("nf4", 64, d)), {}
        )
        for d in (False, True)
    }
    change = paired_bootstrap(losses[True][0], losses[False][0], weights=losses[True][1])
    exact = "reproduced" if without == BITS else "not reproduced"
    # Perplexity is exp(loss): a relative change of 0.2 % is one of log(1.002) in the loss.
    verdict = judge_all(
        [exact, judge_equal(change, tolerance=math.log(1 + CLAIM.tolerance["perplexity"]))]
    )
    return Finding(
        verdict,
        (
            f"{without:.6f} bits ({with_means:.6f} with the means); loss change {shown(change, 5)} "
            "nats"
        ),
        {
            "bits": without,
            "bits_with_means": with_means,
            "loss_change": interval_of(change),
            "gaussian_rms_change": gaussian_change(),
        },
        note="Perplexity is that of S on reviews it was not trained on. The mean of a matrix's scales is one float32: 0.0002 bits here, nothing on large matrices.",
    )
