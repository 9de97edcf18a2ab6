"""C1: NF4 loses less than FP4 and Int4."""

import math

from lab.changes import Stored
from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import forest_row, interval_of, of_losses
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_effect, judge_equal
from lora_jax.analysis.quantisation import sweep, total

CLAIM = Claim(
    id="C1",
    title="NF4 loses less than FP4 and Int4, Int8 nothing",
    source="QLoRA, Table 2",
    published="mean perplexity: Int4 34.34, FP4 E2M1 31.07, FP4 E3M0 29.48, NF4 + DQ 27.41",
    expected="S without training: the loss under FP4 (OCP), FP4 (bitsandbytes) and Int4 lies above that under NF4, by a tenth or more of what NF4 itself loses; Int8 within 0.5 % perplexity of float32. AF4 and E3M0 are reported and not judged",
    kind="weights",
    minutes=2,
    models="S; relative errors on MiniLM's weights",
    regime="linear layers in blocks of 64, scales in 8 bits; 1,000 held-out pieces of domain A, three pretrainings",
    distance="a model of 1.5 M weights without outlier dimensions; the paper averages over four families of 125 M to 13 B",
    limits={"share": MARGIN, "int8_perplexity": 0.005},
)
RIVALS = {"fp4_e2m1": "FP4 (OCP)", "fp4": "FP4 (bitsandbytes)", "int4": "Int4"}
REPORTED = ("af4", "fp4_e3m0")


def run(lab):
    names = ("nf4", *RIVALS, *REPORTED, "int8")
    losses, weights = lab.in_formats(S, [Stored(name) for name in names])
    over = lambda name, other: of_losses([(1, losses[name]), (-1, losses[other])], weights)
    nf4 = over(Stored("nf4"), None)
    behind = {name: over(Stored(name), Stored("nf4")) for name in (*RIVALS, *REPORTED)}
    int8 = over(Stored("int8"), None)

    least = MARGIN * max(nf4.value, 0.0)
    verdict = judge_all([judge_effect(behind[name], least) for name in RIVALS])
    said = ", ".join(f"{title} {behind[name]}" for name, title in RIVALS.items())
    parts = [Part("FP4 and Int4 behind NF4", "effect", verdict, f"nats behind NF4: {said}")]
    # Perplexity is exp(loss).
    nothing = math.log(1 + CLAIM.limits["int8_perplexity"])
    said = f"Int8 {int8} above float32"
    parts.append(Part("Int8 equals float32", "equal", judge_equal(int8, nothing), said))
    of = lambda change: of_losses([(1, losses[change])], weights)
    errors = {name: total(sweep(lab.matrices_of("minilm"), [name]))[0] for name in names}
    return Finding(
        tuple(parts),
        {
            "loss": {
                "float32" if change is None else change.format: interval_of(of(change).interval())
                for change in losses
            },
            "nf4_above_float32": interval_of(nf4.interval()),
            "behind_nf4": {name: interval_of(gap.interval()) for name, gap in behind.items()},
            "int8_above_float32": interval_of(int8.interval()),
            "minilm_relative_error": errors,
        },
        note=f"NF4 itself loses {nf4} nats. On MiniLM's weights the relative error is "
        + ", ".join(f"{name} {error:.4f}" for name, error in errors.items())
        + f". AF4 is {behind['af4']} behind NF4, and E3M0, third in the paper, {behind['fp4_e3m0']}: its place there rests on models with outliers, which neither of these is.",
        plot={
            "forest": {name: forest_row(gap) for name, gap in behind.items()},
            "x": "loss above NF4's, nats",
        },
        seeds=tuple(range(S.bases)),
    )
