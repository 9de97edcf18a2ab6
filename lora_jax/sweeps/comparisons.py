"""Which differences of a sweep its seeds support: between cells, between levels of an axis, and
where the spread comes from.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora_jax.statistics.paired import PairedTest, holm, mcnemar, paired_test
from lora_jax.statistics.variance import Decomposition, decompose
from lora_jax.sweeps.cells import UNLIKE, Cell, axes, facets, levels, seed_of, shown
from lora_jax.sweeps.files import read_lines
from lora_jax.sweeps.records import RunRecord

_MOST_LEVELS = 8  # of an axis, all pairs of which are tested


@dataclass(frozen=True)
class Comparison:
    """Two levels of an axis, everything else equal: mean over the matched settings within a seed,
    then over seeds. Or, with 'best cell' for an axis, that cell against another, over the seeds that
    both have.

    `matched` counts the settings that have both levels; `wins` those in which the first is better
    on the mean of the seeds. `adjusted` is Holm's p among the pairs of levels of all axes, or among
    all pairs of cells.
    """

    axis: str
    first: str
    second: str
    test: PairedTest
    matched: int = 1
    wins: int = 0
    adjusted: float = float("nan")


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


def adapters(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a grid: those with an adapter, or all if there is none."""
    return [cell for cell in cells if cell.rank is not None] or list(cells)


def against_best(cells: Sequence[Cell]) -> list[Comparison]:
    """The cell with the best mean score against every other of the same data and model with which
    it shares seeds, nearest first; one best after the other where there are several of these.

    The best was picked by its score, so each p-value is adjusted for all pairs of cells, not only
    for these.
    """
    groups = facets(cells).values()
    return [one for alike in groups if len(alike) > 1 for one in _against_best(alike)]


def _against_best(cells: Sequence[Cell]) -> list[Comparison]:
    best = max(cells, key=lambda cell: cell.merit)
    scores = best.by_seed
    found = []
    for other in cells:
        theirs = other.by_seed
        shared = sorted(scores.keys() & theirs.keys())
        if other is not best and shared:
            test = paired_test([scores[seed] for seed in shared], [theirs[seed] for seed in shared])
            found.append(Comparison("best cell", best.name, other.name, test))

    adjusted = holm([one.test.p for one in found], family=math.comb(len(cells), 2))
    return sorted(
        (replace(one, adjusted=float(p)) for one, p in zip(found, adjusted, strict=True)),
        key=lambda one: abs(one.test.difference),
    )


def between_levels(cells: Sequence[Cell]) -> list[Comparison]:
    """Every pair of levels of every axis (of axes with many levels, neighbours only), in cells that
    agree in all other axes. Scores on other data or of another model are not compared.
    """
    columns = axes(cells)
    scores = [cell.by_seed for cell in cells]
    higher = cells[0].score.higher_is_better if cells else True
    found = []
    for axis, column in columns.items():
        if axis in UNLIKE:
            continue
        others = [
            tuple(str(columns[name][index]) for name in columns if name != axis)
            for index in range(len(cells))
        ]
        places: dict[tuple[str, ...], dict[Any, int]] = defaultdict(dict)
        for index, (rest, level) in enumerate(zip(others, column, strict=True)):
            places[rest][level] = index

        different = levels(column)
        pairs = itertools.pairwise(different)
        if len(different) <= _MOST_LEVELS:
            pairs = itertools.combinations(different, 2)
        for low, high in pairs:
            matched = [place for place in places.values() if low in place and high in place]
            test = _level_test(axis, high, low, matched, scores, higher)
            if test is not None:
                found.append(test)

    adjusted = holm([one.test.p for one in found])
    return [replace(one, adjusted=float(p)) for one, p in zip(found, adjusted, strict=True)]


def on_examples(cells: Sequence[Cell]) -> list[ExampleTest]:
    """The best cell against every other of the same data and model whose runs kept their answers to
    the same examples; nearest first. Nothing where answers are not simply right or wrong, as in a
    regression.
    """
    if not cells or not _right_or_wrong(cells[0]):
        return []
    groups = facets(cells).values()
    return [one for alike in groups if len(alike) > 1 for one in _on_examples(alike)]


def _on_examples(cells: Sequence[Cell]) -> list[ExampleTest]:
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


def spread(cells: Sequence[Cell]) -> Decomposition | None:
    """How much of the spread of single runs each axis, pair of axes and the seed explain; None if
    there is nothing to explain, or runs are of several data sets or models.
    """
    columns = axes(cells)
    if UNLIKE.keys() & columns:
        return None
    runs = [(index, run) for index, cell in enumerate(cells) for run in cell.runs]
    if len(runs) < 3 or not columns:
        return None
    factors: dict[str, list[Any]] = {
        name: [column[index] for index, _ in runs] for name, column in columns.items()
    }
    factors["seed"] = [seed_of(run) for _, run in runs]
    table = decompose(factors, [run.result.value("test") for _, run in runs], blocks=("seed",))
    if table.replicated:
        return table
    # One seed a setting: its luck is in every source, and nothing shows how large it is.
    unknown = float("nan")
    return replace(
        table,
        sources=tuple(
            replace(source, corrected=unknown, f=unknown, p=unknown) for source in table.sources
        ),
    )


def seed_deviation(cells: Sequence[Cell]) -> float | None:
    """Standard deviation of the score over seeds within a cell, pooled over the cells; None with
    one seed a cell.
    """
    repeated = [cell for cell in cells if cell.seeds > 1]
    if not repeated:
        return None
    squares = sum(cell.seeds * (cell.seeds - 1) * cell.standard_error**2 for cell in repeated)
    return math.sqrt(squares / sum(cell.seeds - 1 for cell in repeated))


def _level_test(
    axis: str,
    first: Any,
    second: Any,
    matched: Sequence[Mapping[Any, int]],
    scores: Sequence[Mapping[int, float]],
    higher_is_better: bool,
) -> Comparison | None:
    """The mean difference a seed is one measurement: settings under one seed share its luck and are
    not independent.
    """
    pairs = [(scores[place[first]], scores[place[second]]) for place in matched]
    shared = [one.keys() & other.keys() for one, other in pairs]
    seeds = sorted(set.intersection(*shared)) if shared else []
    if not seeds:
        return None
    differences = np.array([[one[seed] - other[seed] for seed in seeds] for one, other in pairs])
    test = paired_test(differences.mean(axis=0).tolist(), [0.0] * len(seeds))
    means = differences.mean(axis=1)
    return Comparison(
        axis,
        shown(first),
        shown(second),
        test,
        len(pairs),
        int((means > 0 if higher_is_better else means < 0).sum()),
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
