"""C5: four bits are the best use of a budget of bits."""

import numpy as np

from lab.changes import Stored
from lab.claim import Claim, Finding, Part, judge_all
from lab.contrast import forest_row, interval_of, of_losses, shown
from lab.protocol import MARGIN
from lab.setting import Setting
from lab.small_model import SmallModel, linear_bits
from lab.verdicts import judge_effect, judge_equal
from lora_jax.analysis import envelope

CLAIM = Claim(
    id="C5",
    title="Four bits are the best use of a bit budget",
    source="The case for 4-bit precision (arXiv 2212.09720), Figure 1",
    published="4 bits optimal at a fixed total of bits for almost all models; curves of 4 to 16 bits almost parallel",
    expected="S of width 64, 96, 128 and 160: at equal bits of the linear layers the loss with 4 bits is below that with 2 and 3, and below that with 5, 6, 8 and 16, in the mean over the budgets that both reach, by a tenth or more of the gap between 3 and 4 bits at one width. From 4 bits on, what a format loses differs between width 64 and 160 by less than 20 % of that gap",
    kind="weights",
    minutes=7,
    models="S of four widths",
    regime="0.2 to 1.3 M weights in linear layers, 3,600 steps, three pretrainings each; normal float in blocks of 64, Int8, scales in 8 bits",
    distance="the paper's models have 19 M to 176 B weights and are trained far longer; its 16 bits are taken as float32's loss",
    limits={"share_of_gap": MARGIN, "parallel": 0.2},
)
WIDTHS = (64, 96, 128, 160)
FORMATS = {2: "nf2", 3: "nf3", 4: "nf4", 5: "nf5", 6: "nf6", 8: "int8", 16: None}
ENDS = ((1, 64), (-1, 160))
SIDES = {"fewer": (2, 3), "more": (5, 6, 8, 16)}


def run(lab):
    losses, curves, weights = measured(lab)
    at = lambda width, bits: losses[width, bits]
    gap = of_losses(
        [(s / len(WIDTHS), at(w, k)) for w in WIDTHS for s, k in ((1, 3), (-1, 4))], weights
    )
    scale = max(gap.value, 0.0)
    ahead = {k: above_4_bits(curves, k, weights) for k in FORMATS if k != 4}
    parts = [
        Part(
            f"4 bits beat {side} bits",
            "effect",
            judge_all([judge_effect(ahead[bits], MARGIN * scale) for bits in rivals]),
            "at equal bits, loss above that with 4 bits: "
            + ", ".join(f"{k} bits {ahead[k]}" for k in rivals),
        )
        for side, rivals in SIDES.items()
    ]
    bends = {
        k: of_losses([(s * t, at(w, n)) for s, w in ENDS for t, n in ((1, k), (-1, 4))], weights)
        for k in SIDES["more"]
    }
    allowed = max(CLAIM.limits["parallel"] * scale, 1e-9)
    worst = max(bends.values(), key=lambda bend: abs(bend.value))
    parts.append(
        Part(
            "curves are parallel from 4 bits on",
            "equal",
            judge_all([judge_equal(bend, allowed) for bend in bends.values()]),
            f"offsets from 4 bits differ between widths by up to {worst} (3 to 4 bits: {gap})",
        )
    )
    mean = {k: [[bits, _mean(table, weights)] for bits, table in curves[k]] for k in FORMATS}
    budgets = np.geomspace(mean[4][0][0], mean[4][-1][0], 15).tolist()
    forest = {f"{bits} bits": forest_row(found) for bits, found in ahead.items()}
    return Finding(
        tuple(parts),
        {
            "curves": {f"{bits} bits": points for bits, points in mean.items()},
            "best_bits": dict(zip((f"{b:.0f}" for b in budgets), envelope(mean, budgets))),
            "gap_3_to_4": interval_of(gap.interval()),
            "above_4_bits": {name: row["interval"] for name, row in forest.items()},
            "bends": {f"{k} bits": interval_of(bend.interval()) for k, bend in bends.items()},
        },
        note="Unquantised, the mean loss is "
        + ", ".join(f"{point[1]:.3f} at width {w}" for w, point in zip(WIDTHS, mean[16]))
        + ": where width pays little, bits go to precision instead. What loses 3 bits instead of 4 at one width: "
        + shown(gap.interval())
        + ".",
        plot={"forest": forest, "x": "loss above 4 bits at equal bits, nats"},
        seeds=(0, 1, 2),
    )


def measured(lab):
    """Losses by (width, bits), curves [(total bits, losses), ...] by bits, and weights."""
    losses, curves = {}, {bits: [] for bits in FORMATS}
    for width in WIDTHS:
        base = SmallModel(width=width)
        changes = {bits: name and Stored(name) for bits, name in FORMATS.items()}
        found, weights = lab.in_formats(Setting(base), [c for c in changes.values() if c])
        for bits, change in changes.items():
            losses[width, bits] = found[change]
            total = linear_bits(base, None if change is None else change.spec)
            curves[bits].append((total, found[change]))
    return losses, curves, weights


def above_4_bits(curves, bits, weights):
    """Loss with so many bits minus loss with 4, mean over budgets that both reach."""
    rival, four = equal_bits(curves, bits, 4), equal_bits(curves, 4, bits)
    return of_losses([(1, rival), (-1, four)], weights)


def equal_bits(curves, bits, other, points=15):
    """Losses of a curve, mean over budgets that it and the other one reach; between widths linear
    in log bits.
    """
    totals = [[total for total, _ in curves[k]] for k in (bits, other)]
    low, high = max(min(t) for t in totals), min(max(t) for t in totals)
    tables = np.stack([table for _, table in curves[bits]])
    where = np.log([total for total, _ in curves[bits]])
    budgets = np.log(np.geomspace(low, high, points))
    share = np.stack([np.interp(budgets, where, row) for row in np.eye(len(where))])
    return np.tensordot(share.mean(1), tables, 1)


def _mean(table, weights) -> float:
    return float((table @ weights / weights.sum()).mean())
