"""All that a report says beyond the tables of means, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_jax.statistics.variance import Decomposition
from lora_jax.sweeps.cells import Cell
from lora_jax.sweeps.comparisons import (
    CellTest,
    LevelTest,
    adapters,
    against_best,
    between_levels,
    spread,
)
from lora_jax.sweeps.conclusions import Conclusions, conclude
from lora_jax.sweeps.example_tests import ExampleTest, on_examples


@dataclass(frozen=True)
class Findings:
    """Tests and sources of spread of the adapters of a sweep, and what follows from them."""

    against_best: tuple[CellTest, ...]
    between_levels: tuple[LevelTest, ...]
    spread: Decomposition | None
    on_examples: tuple[ExampleTest, ...]
    conclusions: Conclusions


def findings_of(cells: Sequence[Cell], missing: int = 0) -> Findings:
    """The findings of these cells; `missing` is how many planned runs have no result."""
    chosen = adapters(cells)
    tests, contrasts, table = against_best(chosen), between_levels(chosen), spread(chosen)
    examples = on_examples(chosen)
    conclusions = conclude(chosen, tests, contrasts, table, missing, examples)
    return Findings(tuple(tests), tuple(contrasts), table, tuple(examples), conclusions)
