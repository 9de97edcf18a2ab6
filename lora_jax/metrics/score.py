"""A named score that says which way is better and what it was counted on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

_NAMES = {
    "macro_f1": "macro F1",
    "f1": "F1",
    "token_f1": "entity F1",
    "squad_f1": "answer F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "exact_match": "exact match",
    "bleu": "BLEU",
    "lowercase_bleu": "lowercase BLEU",
    "nist": "NIST",
    "chrf": "chrF",
    "ter": "TER",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "coco_rouge_l": "COCO's ROUGE-L",
    "cider": "CIDEr",
    "meteor": "METEOR",
}


@dataclass(frozen=True)
class Score:
    """A score of a split.

    `count` counts what the score is a mean over, or was computed on: `unit` says what these are
    ('records', 'tokens', 'words'). `share` says that the score is a share of right answers among
    `count` answers that do not depend on each other: only then has it a binomial error. Tokens of
    one text depend on each other, so accuracy over tokens is no such share. `per_example` holds a
    value a record where the score is their mean; it is not written to result.json (`lora-jax
    evaluate` keeps predictions).
    """

    name: str
    value: float
    higher_is_better: bool = True
    unit: str = "records"
    count: int = 0
    share: bool = False
    per_example: Float[np.ndarray, " records"] | None = field(
        default=None, compare=False, repr=False
    )

    @property
    def is_finite(self) -> bool:
        """Whether there is a number: a correlation with constant predictions has none."""
        return math.isfinite(self.value)

    @property
    def label(self) -> str:
        """The score in words: 'accuracy', 'token accuracy', 'loss (nats a token)'."""
        one = self.unit.removesuffix("s")
        if self.name == "loss":
            return f"loss (nats a {one})" if self.unit != "records" else "loss"
        name = _NAMES.get(self.name, self.name.replace("_", " "))
        return f"{one} {name}" if self.name == "accuracy" and self.unit != "records" else name

    @property
    def axis(self) -> str:
        """The label of an axis, with the unit in which values are drawn: 'Test accuracy (%)'."""
        return f"Test {self.label}{' (%)' * self.share}"

    @property
    def factor(self) -> float:
        """What a value is multiplied by to be written: 100 for a share."""
        return 100.0 if self.share else 1.0

    @property
    def points(self) -> str:
        """The unit of a difference with a blank before it, nothing for a plain number."""
        return " points" if self.share else ""

    @property
    def best(self) -> str:
        """'highest' or 'lowest': which is the best one."""
        return "highest" if self.higher_is_better else "lowest"

    def number(self, value: float) -> str:
        """A value of this metric in its unit, without the unit: '81.2', '0.613'."""
        digits = 1 if self.share else 3
        return "n/a" if math.isnan(value) else f"{value * self.factor:.{digits}f}"

    def text(self, value: float) -> str:
        """A value of this metric with its unit: '81.2%', '0.613'."""
        return self.number(value) + "%" * self.share

    def difference(self, value: float, sign: str = "+") -> str:
        """A difference in points, or as a plain number with one digit more than a value."""
        digits = 2 if self.share else 4
        return "n/a" if math.isnan(value) else f"{value * self.factor:{sign}.{digits}f}"

    def to_json(self) -> dict[str, Any]:
        """All but the values of single examples."""
        return {
            "value": self.value,
            "higher_is_better": self.higher_is_better,
            "unit": self.unit,
            "count": self.count,
            "share": self.share,
        }
