"""How a report writes the metric that its runs name: in percent and points where it is a share of
right answers, else as a plain number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_jax.metrics.score import Score


@dataclass(frozen=True)
class Measure:
    """The primary metric of the runs of a report, by one of its scores on the test split."""

    score: Score

    @property
    def label(self) -> str:
        """'accuracy', 'loss (nats a token)'."""
        return self.score.label

    @property
    def title(self) -> str:
        """'Test accuracy', 'Test loss (nats a token)', for the head of a picture."""
        return f"Test {self.label}"

    @property
    def name(self) -> str:
        """'Accuracy', 'Loss': the title without the split and the unit."""
        plain = self.label.partition(" (")[0]
        return plain[0].upper() + plain[1:]

    @property
    def axis(self) -> str:
        """The title with the unit in which values are drawn."""
        return f"{self.title} (%)" if self.score.share else self.title

    @property
    def factor(self) -> float:
        """What a value is multiplied by to be written: 100 for a share."""
        return 100.0 if self.score.share else 1.0

    @property
    def points(self) -> str:
        """The unit of a difference with a blank before it, nothing for a plain number."""
        return " points" if self.score.share else ""

    @property
    def best(self) -> str:
        """'highest' or 'lowest': which is the best one."""
        return "highest" if self.score.higher_is_better else "lowest"

    def number(self, value: float) -> str:
        """The value in its unit, without the unit: '81.2', '0.613'."""
        digits = 1 if self.score.share else 3
        return "n/a" if math.isnan(value) else f"{value * self.factor:.{digits}f}"

    def text(self, value: float) -> str:
        """The value with its unit: '81.2%', '0.613'."""
        return self.number(value) + ("%" if self.score.share else "")

    def difference(self, value: float, sign: str = "+") -> str:
        """A difference in points, or as a plain number with one digit more than a value."""
        digits = 2 if self.score.share else 4
        return "n/a" if math.isnan(value) else f"{value * self.factor:{sign}.{digits}f}"
