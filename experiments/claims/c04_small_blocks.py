"""C4: small blocks are worth almost a bit."""

from lab.changes import Stored
from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import OverSeeds, forest_row, interval_of, of_losses, shown
from lab.setting import S
from lab.verdicts import judge_effect
from lora_jax.analysis.quantisation import sweep

CLAIM = Claim(
    id="C4",
    title="Small blocks are worth more than half a bit",
    source="The case for 4-bit precision (arXiv 2212.09720), section 4",
    published="blocks of 64 instead of 1024 cost 0.24 bits a weight and are worth nearly as much as a fifth bit",
    expected="what 4 bits gain by blocks of 64 is more than half of what they gain by a fifth bit, for integers and for normal float: in the loss of S without training, from one scale a channel; in the squared error of MiniLM's MLP outputs (1,536 inputs), from blocks of 1024",
    kind="weights",
    minutes=3,
    models="S (loss), MiniLM (weights)",
    regime="S: channels of 160 and 480 weights, three pretrainings; MiniLM: the six matrices whose channels are longer than 1024",
    distance="S has no channel as long as the published block, so its first half asks for more than the source; squared error stands for the loss, which it moves in proportion while it is small",
    limits={"share": 0.5},
)
FAMILIES = {"int": "integers", "nf": "normal float"}
BLOCKS = (32, 64, 128, None)
LONG = "layers/mlp/down/kernel"


def in_loss(lab):
    """What S loses (nats above float32) by format and block, and by family what blocks of 64 gain
    beyond half of a fifth bit's gain, and their share of it.
    """
    stored = lambda name, block: Stored(name, block, double=False)
    cells = [stored(f"{family}4", block) for family in FAMILIES for block in BLOCKS]
    fifth = {family: stored(f"{family}5", None) for family in FAMILIES}
    losses, weights = lab.in_formats(S, [*cells, *fifth.values()])
    part = lambda *terms: of_losses([(sign, losses[change]) for sign, change in terms], weights)

    beyond, share, half = {}, {}, CLAIM.limits["share"]
    for family in FAMILIES:
        whole, small = stored(f"{family}4", None), stored(f"{family}4", 64)
        beyond[family] = part((1 - half, whole), (-1, small), (half, fifth[family]))
        gained, bit = part((1, whole), (-1, small)), part((1, whole), (-1, fifth[family]))
        share[family] = gained.value / bit.value
    damage = {change: part((1, change), (-1, None)) for change in losses if change is not None}
    return damage, beyond, share


def in_error(matrices):
    """By family, the share of a fifth bit's gain in squared error that blocks of 64 have, of each
    matrix.
    """
    square = lambda name, block: [
        row.relative_error**2 for row in sweep({LONG: matrices[LONG]}, [name], [block])
    ]
    return {
        family: [
            (whole - small) / (whole - bit)
            for whole, small, bit in zip(
                square(f"{family}4", 1024), square(f"{family}4", 64), square(f"{family}5", 1024)
            )
        ]
        for family in FAMILIES
    }


def run(lab):
    damage, beyond, share = in_loss(lab)
    shares = {
        family: OverSeeds(tuple(found))
        for family, found in in_error(lab.matrices_of("minilm")).items()
    }
    over_half = {
        family: OverSeeds(tuple(value - CLAIM.limits["share"] for value in found.by_seed))
        for family, found in shares.items()
    }
    return Finding(
        (
            Part(
                "loss of S",
                "effect",
                judge_all([judge_effect(found) for found in beyond.values()]),
                "S: blocks of 64 are worth "
                + ", ".join(
                    f"{share[f]:.0%} of a fifth bit with {FAMILIES[f]} (beyond half of one by "
                    f"{shown(found.interval(), 4)} nats)"
                    for f, found in beyond.items()
                ),
            ),
            Part(
                "error of MiniLM's weights",
                "effect",
                judge_all([judge_effect(found) for found in over_half.values()]),
                "MiniLM's weights: share of a fifth bit "
                + ", ".join(f"{shares[f]} with {FAMILIES[f]}" for f in shares),
            ),
        ),
        {
            "loss_above_float32": {
                change.name: interval_of(d.interval()) for change, d in damage.items()
            },
            "beyond_half_a_bit": {f: interval_of(found.interval()) for f, found in beyond.items()},
            "share_in_loss": share,
            "share_in_squared_error": {
                f: interval_of(found.interval()) for f, found in shares.items()
            },
        },
        note="Brackets of the second half are over the six matrices.",
        plot={
            "forest": {f"MiniLM, {FAMILIES[f]}": forest_row(found) for f, found in shares.items()},
            "x": "gain of blocks of 64, as a share of a fifth bit's (squared error)",
            "published": {"half a bit": 0.5},
        },
        seeds=tuple(range(S.bases)),
    )
