"""C3: storing the scales in 8 bits costs nothing, and brings 4.127 bits a weight."""

import math

import jax.numpy as jnp
import numpy as np

from lab.changes import Stored
from lab.claim import Claim, Finding, Part
from lab.contrast import interval_of, of_losses, shown
from lab.setting import S
from lab.verdicts import judge_equal
from lora_jax import QuantSpec, bytes_of, quantize
from lora_jax.analysis.quantisation import rms_error

CLAIM = Claim(
    id="C3",
    title="Double quantisation is free",
    source="QLoRA, section 3",
    published="8/64 + 32/(64 * 256) bits a weight for the scales, not 0.5: 0.373 saved; no loss",
    expected="exactly 4 + 8/64 + 32/(64 * 256) bits a weight from the stored arrays of MiniLM (one float32 mean a matrix besides); perplexity of S within 0.2 %",
    kind="weights",
    minutes=1,
    models="MiniLM (bytes), S (loss)",
    regime="NF4 in blocks of 64; matrices whose sizes are multiples of 64 x 256",
    distance="none in the bytes; the loss is that of a model of 1.5 M weights",
    limits={"perplexity": 0.002},
)
BITS = 4 + 8 / 64 + 32 / (64 * 256)


def bits(matrices) -> tuple[float, float]:
    """(bits a weight without the one mean a matrix, bits with it), counted from the arrays."""
    stored = [quantize(jnp.asarray(w), QuantSpec("nf4", 64, True)) for w in matrices.values()]
    weights = sum(q.size for q in stored)
    means = sum(q.scale.offset.nbytes for q in stored)
    total = sum(bytes_of(q) for q in stored)
    return 8 * (total - means) / weights, 8 * total / weights


def gaussian_change() -> float:
    """Relative change of the RMS error of NF4 on a million normal numbers."""
    samples = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)
    plain, double = (rms_error(samples, QuantSpec("nf4", 64, double)) for double in (False, True))
    return double / plain - 1


def judge_bits(found: float):
    """The verdict on a count of bits a weight: exact or wrong."""
    return "reproduced" if found == BITS else "not reproduced"


def run(lab):
    without, with_means = bits(lab.matrices_of("minilm"))
    plain, double = Stored("nf4", double=False), Stored("nf4")
    losses, weights = lab.in_formats(S, [plain, double])
    change = of_losses([(1, losses[double]), (-1, losses[plain])], weights)
    # Perplexity is exp(loss): a relative change of 0.2 % is one of log(1.002) in the loss.
    allowed = math.log(1 + CLAIM.limits["perplexity"])
    interval = interval_of(change.interval())
    return Finding(
        (
            Part(
                "bits",
                "exact",
                judge_bits(without),
                f"{without:.6f} bits a weight ({with_means:.6f} with the means)",
            ),
            Part(
                "loss",
                "equal",
                judge_equal(change, allowed),
                f"loss changes by {shown(change.interval(), 5)} nats",
            ),
        ),
        {
            "bits": without,
            "bits_with_means": with_means,
            "loss_change": interval,
            "gaussian_rms_change": gaussian_change(),
        },
        note="The mean of a matrix's scales is one float32: 0.0002 bits here, nothing on large matrices.",
        plot={
            "forest": {"NF4, scales in 8 bits": {"interval": interval, "seeds": change.by_seed}},
            "x": "loss above scales in float32, nats",
            "margin": allowed,
        },
        seeds=tuple(range(S.bases)),
    )
