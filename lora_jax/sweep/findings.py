"""All that a report says beyond the tables of means, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_jax.analysis.variance import Decomposition
from lora_jax.sweep.cells import Cell
from lora_jax.sweep.comparisons import CellTest, LevelTest, adapters, against_best, between_levels, spread
from lora_jax.sweep.conclusions import Conclusions, conclude


@dataclass(frozen=True)
class Findings:
    """Tests and sources of spread of the adapters of a sweep, and what follows from them."""

    against_best: tuple[CellTest, ...]
    between_levels: tuple[LevelTest, ...]
    spread: Decomposition | None
    conclusions: Conclusions


def find(cells: Sequence[Cell], missing: int = 0) -> Findings:
    """The findings of these cells; `missing` is how many planned runs have no result."""
    chosen = adapters(cells)
    tests, contrasts, table = against_best(chosen), between_levels(chosen), spread(chosen)
    return Findings(tuple(tests), tuple(contrasts), table, conclude(chosen, tests, contrasts, table, missing))
