"""Best learning rates by whole curves: every rate of a grid under three seeds, and a fit through
all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.claim import Verdict
from lab.protocol import Bench, Curve, rate_at
from lab.setting import S, Setting
from lora_jax.analysis import BestRate, best_rate
from lora_jax.statistics import Interval

SEEDS = (101, 102, 103)  # those that arms are tuned by, and one more: one on each pretraining
LEVEL = 0.9  # of every interval: two one-sided tests at 5 %
RATES = 8  # of a curve
RANKS = (1, 4, 16, 64)
# Where the grid of a rank begins under alpha / sqrt(r), whose scale grows beside that of alpha / r.
_LOWEST = {"standard": dict.fromkeys(RANKS, -2), "rslora": {1: -2, 4: -3, 16: -3, 64: -4}}


@dataclass(frozen=True)
class Fitted:
    """A curve of validation losses, and its best rate."""

    setting: Setting
    curve: Curve
    best: BestRate

    def at(self, point: int) -> np.ndarray:
        """Validation loss of each seed at a point of the grid."""
        return self.curve.losses[:, self.curve.rates.index(rate_at(point))]

    def line(self) -> list[list[float]]:
        """(rate, mean loss, smallest, largest over seeds), of rates that never diverged."""
        rows = zip(self.curve.rates, self.curve.losses.T)
        return [
            [rate, float(row.mean()), float(row.min()), float(row.max())]
            for rate, row in rows
            if np.isfinite(row).all()
        ]

    def summary(self) -> dict[str, Any]:
        """What a result file says of it."""
        return {
            "best_rate": known(self.best.rate),
            "loss": self.best.loss,
            "on_edge": self.best.on_edge,
            "rates": list(self.curve.rates),
            "losses": [known(row) for row in self.curve.losses],
        }


def fitted(lab: Bench, setting: Setting, lowest: int, count: int = RATES) -> Fitted:
    """The setting at `count` rates of the common grid, from its point `lowest` on."""
    rates = [rate_at(lowest + n) for n in range(count)]
    curve = lab.curve(setting, rates, seeds=SEEDS)
    return Fitted(setting, curve, best_rate(curve.rates, curve.losses, level=LEVEL))


def by_rank(lab: Bench, scaling: str) -> dict[int, Fitted]:
    """LoRA on S by rank, alpha 16, at 8 rates each. Both scalings are the same at rank 1, which is
    trained once.
    """
    at = lambda rank: (
        {"lora.rank": rank}
        | ({} if scaling == "standard" or rank == 1 else {"lora.scaling": scaling})
    )
    return {rank: fitted(lab, S.with_(**at(rank)), _LOWEST[scaling][rank]) for rank in RANKS}


def diverged(curves: dict[str, Fitted]) -> tuple[str, ...]:
    """The runs that did."""
    return tuple(
        f"{name} at {rate:.3g}, seed {seed}"
        for name, found in curves.items()
        for seed, row in zip(SEEDS, found.curve.losses)
        for rate, loss in zip(found.curve.rates, row)
        if not np.isfinite(loss)
    )


def known(values: Sequence[float]) -> list[float | None]:
    """As JSON has them: null where there is no limit, or a run diverged."""
    return [float(x) if np.isfinite(x) else None for x in values]


def point(x: float, found: Sequence[float]) -> list[float]:
    """As a line of a plot has it: with its interval, where both ends are known."""
    value, low, high = map(float, found[:3])
    return [x, value, low, high] if low > 0 and high < math.inf else [x, value]


def over(first: Interval, second: Interval) -> Interval:
    """A ratio of two positive figures that do not depend on each other: distances to their limits
    add as squares in logs, as in `rate_ratio`.
    """
    log = lambda x: math.log(x) if 0 < x < math.inf else math.copysign(math.inf, x - 1)
    (a, a_low, a_high), (b, b_low, b_high) = map(log, first), map(log, second)
    low, high = math.hypot(a - a_low, b_high - b), math.hypot(a_high - a, b - b_low)
    return Interval(*(math.exp(x) for x in (a - b, a - b - low, a - b + high)))


def judge_range(found: Sequence[float], low: float, high: float) -> Verdict:
    """The verdict on a figure (value, low, high) that must lie in a range: reproduced if its
    interval does, not reproduced if that lies wholly outside.
    """
    _, below, above = found
    if low <= below and above <= high:
        return "reproduced"
    return "not reproduced" if above < low or below > high else "inconclusive"


def shown(found: Sequence[float]) -> str:
    """'3.21 [2.10, 4.00]', with a dash where there is no limit."""
    end = lambda x: f"{x:.2f}" if 0 < abs(x) < math.inf else "-"
    value, low, high = found[:3]
    return f"{value:.2f} [{end(low)}, {end(high)}]"
