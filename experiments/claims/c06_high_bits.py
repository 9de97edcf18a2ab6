"""C6: at 6 to 8 bits no choice of format or block matters."""

from lab.changes import Stored
from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import forest_row, interval_of, of_losses
from lab.protocol import MARGIN
from lab.setting import S
from lab.verdicts import judge_equal

CLAIM = Claim(
    id="C6",
    title="No method can help at 6 to 8 bits: nothing is lost there",
    source="The case for 4-bit precision (arXiv 2212.09720), section 4",
    published="no data type, block size or outlier method improves 6- to 8-bit scaling",
    expected="S without training: under every 6- or 8-bit format and block the loss is that of float32 up to a tenth of what NF4 in blocks of 64 loses; 6 and 8 bits are judged apart",
    kind="weights",
    minutes=4,
    models="S",
    regime="three 8-bit and two 6-bit formats, blocks of 32, 64 or a channel (160 or 480 weights); three pretrainings",
    distance="no outlier method is tested; a model of 1.5 M weights",
    limits={"share_of_nf4": MARGIN},
)
FORMATS = {8: ("int8", "nf8", "fp8_e4m3"), 6: ("int6", "nf6")}
BLOCKS = (32, 64, None)


def run(lab):
    nf4 = Stored("nf4")
    cells = {
        bits: [Stored(name, block, double=False) for name in names for block in BLOCKS]
        for bits, names in FORMATS.items()
    }
    losses, weights = lab.in_formats(S, [nf4, *cells[8], *cells[6]])
    above = lambda change: of_losses([(1, losses[change]), (-1, losses[None])], weights)
    damage = above(nf4)
    # Where NF4 loses nothing there is no measure, and nothing passes.
    allowed = max(MARGIN * damage.value, 1e-9)

    parts, forest = [], {}
    for bits, changes in cells.items():
        found = {change: above(change) for change in changes}
        worst = max(found, key=lambda change: abs(found[change].value))
        share = abs(found[worst].value) / max(abs(damage.value), 1e-9)
        parts.append(
            Part(
                f"{bits} bits",
                "equal",
                judge_all([judge_equal(change, allowed) for change in found.values()]),
                f"{bits} bits: at most {found[worst]} nats ({_title(worst)}), {share:.0%} of what NF4 loses",
            )
        )
        forest |= {_title(change): forest_row(gap) for change, gap in found.items()}
    return Finding(
        tuple(parts),
        {
            "above_float32": {name: row["interval"] for name, row in forest.items()},
            "nf4_above_float32": interval_of(damage.interval()),
        },
        note=f"NF4 loses {damage} nats. What a format loses bounds what any method could win back.",
        plot={"forest": forest, "x": "loss above float32, nats", "margin": allowed},
        seeds=tuple(range(S.bases)),
    )


def _title(change: Stored) -> str:
    block = "a channel" if change.block_size is None else f"blocks of {change.block_size}"
    return f"{change.format}, {block}"
