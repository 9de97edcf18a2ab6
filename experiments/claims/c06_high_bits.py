"""C6: at 6 to 8 bits no choice of format or block matters."""

import math

from lab import small_model
from lab.examples import example_losses
from lab.protocol import Claim, Finding, interval_of
from lab.verdicts import judge_all, judge_equal
from lora_jax import QuantSpec
from lora_jax.statistics import paired_bootstrap

CLAIM = Claim(
    id="C6",
    title="No method helps at 6 to 8 bits",
    source="The case for 4-bit precision (arXiv 2212.09720), section 4",
    published="no data type, block size or outlier method improves 6- to 8-bit scaling",
    expected="perplexity of S within 0.3 % of fp32 at 8 bits and within 1 % at 6 bits, for every format and block",
    kind="weights",
    tolerance={"8": 0.003, "6": 0.01},
)
FORMATS = {"8": ("int8", "nf8", "fp8_e4m3"), "6": ("int6", "nf6")}


def run(lab):
    model, params = small_model.load(small_model.pretrained())
    held = small_model.held_out()
    exact, weights = example_losses(model, held, params, {})
    changes = {}
    for bits, formats in FORMATS.items():
        for format in formats:
            for block in (32, 64, None):
                stored = small_model.quantized(model, params, QuantSpec(format, block, False))
                changes[bits, format, str(block)] = paired_bootstrap(
                    example_losses(model, held, stored, {})[0], exact, weights=weights
                )
    verdicts = [
        judge_equal(i, tolerance=math.log(1 + CLAIM.tolerance[bits]))
        for (bits, *_), i in changes.items()
    ]
    worst = {
        bits: max(
            (abs(i.value), f"{f} in blocks of {b}") for (k, f, b), i in changes.items() if k == bits
        )
        for bits in FORMATS
    }
    return Finding(
        judge_all(verdicts),
        "; ".join(
            f"{bits} bits: at most {math.expm1(value):.2%} perplexity ({where})"
            for bits, (value, where) in worst.items()
        ).replace("blocks of None", "channels"),
        {
            "loss_change": {
                f"{bits} bits, {f}, {b}": interval_of(i) for (bits, f, b), i in changes.items()
            }
        },
        note="fp8_e4m3 has three mantissa bits: of the 8-bit formats it is the only one that loses visibly.",
    )
