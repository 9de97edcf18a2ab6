"""Whether two cells are right on different test examples, for runs whose answers to each example
were kept.

`lora-jax evaluate RUN` keeps them in RUN/predictions/test.jsonl. These tests speak about these
trained models and other examples; what another seed would train, they do not know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_jax.statistics.paired import holm, mcnemar, paired_test
from lora_jax.sweeps.cells import Cell, seed_of
from lora_jax.sweeps.files import read_lines
from lora_jax.sweeps.records import RunRecord


@dataclass(frozen=True)
class ExampleTest:
    """The best cell against another on the same examples: `difference` of accuracy, and Holm's p
    among all pairs of cells.

    With one seed `p` is McNemar's exact test; with several, each example counts with its mean over
    the seeds (Student's paired t-test).
    """

    best: Cell
    other: Cell
    examples: int
    seeds: int
    difference: float
    p: float
    adjusted: float = float("nan")


def on_examples(cells: Sequence[Cell]) -> list[ExampleTest]:
    """The best cell against every other whose runs kept their answers to the same examples; nearest
    first. Nothing where answers are not simply right or wrong, as in a regression.
    """
    if len(cells) < 2 or not _right_or_wrong(cells[0]):
        return []

    best = max(cells, key=lambda cell: cell.merit)
    ours = _answers(best)
    found = []
    for other in cells if ours else ():
        theirs = _answers(other) if other is not best else {}
        shared = [seed for seed in ours if seed in theirs and ours[seed][0] == theirs[seed][0]]
        if not shared:
            continue
        one, two = (
            np.mean([answers[seed][1] for seed in shared], axis=0) for answers in (ours, theirs)
        )
        p = mcnemar(one > 0.5, two > 0.5).p if len(shared) == 1 else paired_test(one, two).p
        found.append(ExampleTest(best, other, len(one), len(shared), float(np.mean(one - two)), p))
    adjusted = holm([one.p for one in found], family=max(math.comb(len(cells), 2), len(found)))
    return sorted(
        (replace(one, adjusted=float(p)) for one, p in zip(found, adjusted, strict=True)),
        key=lambda one: one.difference,
    )


def _right_or_wrong(cell: Cell) -> bool:
    accuracy = cell.runs[0].result.scores["test"].get("accuracy")
    return accuracy is not None and accuracy.share


def _answers(cell: Cell) -> dict[int, tuple[list[str], np.ndarray]]:
    """{seed: (ids of the examples, which were right)} of the cell's runs that kept them."""
    found = {seed_of(run): _read(run) for run in cell.runs}
    return {seed: answers for seed, answers in found.items() if answers is not None}


def _read(run: RunRecord) -> tuple[list[str], np.ndarray] | None:
    rows = [
        row
        for row in read_lines(run.folder / "predictions" / "test.jsonl")[0]
        if row.get("units") == 1 and isinstance(row.get("correct"), (int, float)) and "id" in row
    ]
    if not rows:
        return None
    return [row["id"] for row in rows], np.array([row["correct"] for row in rows], float)
