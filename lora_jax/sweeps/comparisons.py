"""Which differences of a sweep its seeds support: between cells, between levels of an axis, and
where the spread comes from.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lora_jax.metrics.score import Score
from lora_jax.statistics.crossed import Crossed, crossed_mean
from lora_jax.statistics.paired import PairedTest, holm, mcnemar, paired_test
from lora_jax.statistics.variance import Decomposition, decompose
from lora_jax.sweeps.answers import Answers, answers_of
from lora_jax.sweeps.cells import UNLIKE, Cell, axes, facets, levels, seed_of, shown
from lora_jax.sweeps.records import RunRecord

_MOST_LEVELS = 8  # of an axis, all pairs of which are tested
LOSS = "loss"
COUNTED = ("accuracy", LOSS)  # scores of which answers that were kept hold each example's part
A_DOUBLING = "a doubling"  # in place of two levels: the slope along the axis


@dataclass(frozen=True)
class Comparison:
    """Two levels of an axis, everything else equal: mean over the matched settings within a seed,
    then over seeds. Or, with 'best cell' for an axis, that cell against another, over the seeds that
    both have.

    `matched` counts the settings that have both levels; `wins` those in which the first is better
    on the mean of the seeds. `adjusted` is Holm's p among the pairs of levels of all axes, or among
    all pairs of cells. `metric` is the score that was compared, None the primary one. `crossed` is
    of seeds and examples, where all runs kept what they gave on the same examples: it then stands
    in for `test`, which is of seeds on these examples alone.
    """

    axis: str
    first: str
    second: str
    test: PairedTest
    matched: int = 1
    wins: int = 0
    adjusted: float = float("nan")
    metric: str | None = None
    crossed: Crossed | None = None

    @property
    def p(self) -> float:
        """Two-sided, of no difference."""
        return self.test.p if self.crossed is None else self.crossed.p

    @property
    def limits(self) -> tuple[float, float]:
        """The 95% interval of the difference."""
        if self.crossed is None:
            return self.test.low, self.test.high
        return self.crossed.interval()[1:]

    def p_within(self, margin: float) -> float:
        """Of a difference of `margin` or more: see `PairedTest.p_within`."""
        return (self.test if self.crossed is None else self.crossed).p_within(margin)


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


@dataclass(frozen=True)
class ByScore:
    """What is asked about one score: cells, levels, slopes along axes, sources of spread, and
    baselines.
    """

    against_best: tuple[Comparison, ...] = ()
    between_levels: tuple[Comparison, ...] = ()
    along_axes: tuple[Comparison, ...] = ()
    spread: Decomposition | None = None
    against_baselines: tuple[Comparison, ...] = ()


class Choice(NamedTuple):
    """By which score the best cell is picked: of the validation split, or of the test split where
    no validation score is there.
    """

    split: str
    score: Score

    def merit(self, cell: Cell) -> float:
        """Larger for the better of two cells: the mean over seeds."""
        values = [run.result.value(self.split, self.score.name) for run in cell.runs]
        return statistics.fmean(values) * (1 if self.score.higher_is_better else -1)

    @property
    def words(self) -> str:
        """Such as 'the highest validation accuracy'."""
        return f"the {self.score.best} {self.split} {self.score.label}"


def choice(cells: Sequence[Cell]) -> Choice:
    """The validation score that all of these runs have: their primary metric, else their loss; the
    test score, if they have neither.
    """
    results = [run.result for cell in cells for run in cell.runs]
    first = results[0]
    for name in (first.primary, LOSS):
        found = [result.scores.get("validation", {}).get(name) for result in results]
        if all(score is not None and score.is_finite for score in found):
            return Choice("validation", first.score("validation", name))
    return Choice("test", first.score("test"))


def ranked(cells: Sequence[Cell]) -> list[Cell]:
    """These cells, the best by `choice` first; of a tie, in their order."""
    return sorted(cells, key=choice(cells).merit, reverse=True)


def adapters(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a grid: those with an adapter, or all if there is none."""
    return [cell for cell in cells if cell.rank is not None] or list(cells)


def has_loss(cells: Sequence[Cell]) -> bool:
    """Whether all runs have a test loss besides their primary metric."""
    results = [run.result for cell in cells for run in cell.runs]
    losses = [result.scores["test"].get(LOSS) for result in results if result.primary != LOSS]
    return bool(losses) and all(loss is not None and loss.is_finite for loss in losses)


def against_best(cells: Sequence[Cell], metric: str | None = None) -> list[Comparison]:
    """The best cell (`ranked`) against every other of the same data and model with which it shares
    seeds, by their test scores, nearest first; one best after the other where there are several of
    these.

    The best was picked by a score of the same runs, so each p-value is adjusted for all pairs of
    cells, not only for these.
    """
    groups = facets(cells).values()
    return [one for alike in groups if len(alike) > 1 for one in _against_best(alike, metric)]


def _against_best(cells: Sequence[Cell], metric: str | None) -> list[Comparison]:
    best, *others = ranked(cells)
    found = []
    for other in others:
        tested = _tested([(best, 1.0), (other, -1.0)], metric)
        if tested is not None:
            test, crossed = tested
            found.append(
                Comparison("best cell", best.name, other.name, test, metric=metric, crossed=crossed)
            )
    return sorted(
        _adjusted(found, family=math.comb(len(cells), 2)), key=lambda one: abs(one.test.difference)
    )


def against_baselines(cells: Sequence[Cell], metric: str | None = None) -> list[Comparison]:
    """The mean of all adapters against every baseline of the same data and model, over the seeds
    that all of these have. The mean, as no adapter is picked by its score for it.
    """
    found = []
    for words, alike in facets(cells).items():
        grid = [cell for cell in alike if cell.rank is not None]
        name = f"mean of {len(grid)} adapter{'s' * (len(grid) > 1)} {words}".strip()
        for other in (cell for cell in alike if cell.rank is None and grid):
            tested = _tested([*((cell, 1 / len(grid)) for cell in grid), (other, -1.0)], metric)
            if tested is None:
                continue
            wins = _wins([[(cell, 1.0), (other, -1.0)] for cell in grid], metric)
            test, crossed = tested
            found.append(
                Comparison(
                    "baseline",
                    name,
                    other.name,
                    test,
                    len(grid),
                    wins,
                    metric=metric,
                    crossed=crossed,
                )
            )
    return _adjusted(found)


def between_levels(cells: Sequence[Cell], metric: str | None = None) -> list[Comparison]:
    """Every pair of levels of every axis (of axes with many levels, neighbours only), in cells that
    agree in all other axes. Scores on other data or of another model are not compared.
    """
    found = []
    for axis, different, places in _matched(cells):
        pairs = itertools.pairwise(different)
        if len(different) <= _MOST_LEVELS:
            pairs = itertools.combinations(different, 2)
        for low, high in pairs:
            matched = [place for place in places if low in place and high in place]
            found += _level_test(axis, matched, {high: 1.0, low: -1.0}, metric)
    return _adjusted(found)


def along_axes(cells: Sequence[Cell], metric: str | None = None) -> list[Comparison]:
    """For every axis of three or more numbers above 0: how much the score rises with each doubling,
    the slope of a straight line on log2, in cells that agree in all other axes.
    """
    found = []
    for axis, different, places in _matched(cells):
        is_numeric = all(
            isinstance(one, (int, float)) and not isinstance(one, bool) and one > 0
            for one in different
        )
        if len(different) < 3 or not is_numeric:
            continue
        matched = [place for place in places if len(place) == len(different)]
        x = np.log2(different) - np.log2(different).mean()
        slope = dict(zip(different, (x / (x @ x)).tolist(), strict=True))
        found += _level_test(axis, matched, slope, metric)
    return _adjusted(found)


def _matched(
    cells: Sequence[Cell],
) -> list[tuple[str, list[Any], list[dict[Any, Cell]]]]:
    """(axis, its levels, {level: cell} of each setting of all other axes)."""
    columns = axes(cells)
    found = []
    for axis, column in columns.items():
        if axis in UNLIKE:
            continue
        places: dict[tuple[str, ...], dict[Any, Cell]] = defaultdict(dict)
        for index, cell in enumerate(cells):
            rest = tuple(str(columns[name][index]) for name in columns if name != axis)
            places[rest][column[index]] = cell
        found.append((axis, levels(column), list(places.values())))
    return found


def _adjusted(found: Sequence[Comparison], family: int | None = None) -> list[Comparison]:
    adjusted = holm([one.p for one in found], family)
    return [replace(one, adjusted=float(p)) for one, p in zip(found, adjusted, strict=True)]


def on_examples(cells: Sequence[Cell]) -> list[ExampleTest]:
    """The best cell against every other of the same data and model whose runs kept their answers to
    the same examples; nearest first. Nothing where the score is not of answers that are simply
    right or wrong, as in a regression.
    """
    if not cells or not _right_or_wrong(cells[0]):
        return []
    groups = facets(cells).values()
    return [one for alike in groups if len(alike) > 1 for one in _on_examples(alike)]


def _on_examples(cells: Sequence[Cell]) -> list[ExampleTest]:
    best, *others = ranked(cells)
    ours = _right(best)
    found = []
    for other in others if ours else ():
        theirs = _right(other)
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


def spread(cells: Sequence[Cell], metric: str | None = None) -> Decomposition | None:
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
    values = [run.result.value("test", metric) for _, run in runs]
    table = decompose(factors, values, blocks=("seed",))
    if table.replicated:
        return table
    # One seed a setting: its luck is in every source, and nothing shows how large it is.
    unknown = float("nan")
    return replace(
        table,
        sources=tuple(
            replace(source, corrected=unknown, f=unknown, p=unknown, adjusted=unknown)
            for source in table.sources
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


def paired_deviation(cells: Sequence[Cell]) -> float | None:
    """Standard deviation of the difference of two cells over the seeds that they share, pooled over
    all pairs: what is left of the scores without the mean of each cell and of each seed. None if no
    two cells of one data set and model share two seeds.
    """
    squares, freedom = 0.0, 0
    for alike in facets(cells).values():
        scores = [cell.by_seed() for cell in alike]
        shared = sorted(set.intersection(*(set(one) for one in scores)))
        if len(alike) > 1 and len(shared) > 1:
            table = np.array([[one[seed] for seed in shared] for one in scores])
            rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
            squares += float((rest**2).sum())
            freedom += (len(alike) - 1) * (len(shared) - 1)
    return math.sqrt(2 * squares / freedom) if freedom else None


def _level_test(
    axis: str,
    matched: Sequence[Mapping[Any, Cell]],
    weights: Mapping[Any, float],
    metric: str | None,
) -> list[Comparison]:
    """The comparison of the levels by these weights; nothing without a setting or a seed that has
    them all.
    """
    each = [[(place[level], weight) for level, weight in weights.items()] for place in matched]
    everything = [(cell, weight / len(each)) for one in each for cell, weight in one]
    tested = _tested(everything, metric) if each else None
    if tested is None:
        return []
    test, crossed = tested
    wins = _wins(each, metric)
    named = map(shown, weights) if len(weights) == 2 else (A_DOUBLING, "")
    return [Comparison(axis, *named, test, len(each), wins, metric=metric, crossed=crossed)]


def _wins(sums: Sequence[Sequence[tuple[Cell, float]]], metric: str | None) -> int:
    """In how many of these weighted sums of mean scores the cells of weights above 0 are better."""
    higher = sums[0][0][0].runs[0].result.score("test", metric).higher_is_better
    mean = lambda cell: statistics.fmean(cell.by_seed(metric).values())
    totals = [math.fsum(weight * mean(cell) for cell, weight in one) for one in sums]
    return sum(total > 0 if higher else total < 0 for total in totals)


def _tested(
    weights: Sequence[tuple[Cell, float]], metric: str | None
) -> tuple[PairedTest, Crossed | None] | None:
    """The weighted sum of these cells' scores, tested against 0; None if they share no seed.

    A seed is one measurement: settings under one seed share its luck and are not independent.
    """
    scores = [(cell.by_seed(metric), weight) for cell, weight in weights]
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed, _ in scores)))
    if not seeds:
        return None
    above, below = (
        [math.fsum(abs(w) * one[seed] for one, w in scores if w * sign > 0) for seed in seeds]
        for sign in (1, -1)
    )
    return paired_test(above, below), _crossed(weights, seeds, metric) if len(seeds) > 1 else None


def _crossed(
    weights: Sequence[tuple[Cell, float]], seeds: Sequence[int], metric: str | None
) -> Crossed | None:
    """The same over seeds and examples; None unless all runs kept what they gave on the same, and
    all, test examples, and the score is a mean of that.
    """
    total, first, largest = None, None, 0.0
    for cell, weight in weights:
        rows = {}
        for run in cell.runs:
            if seed_of(run) not in seeds:
                continue
            answers, score = answers_of(run), run.result.score("test", metric)
            first = first or answers
            if answers is None or not _whole(run, answers) or answers.ids != first.ids:
                return None
            if score.name not in COUNTED or (answers.units != first.units).any():
                return None
            sums = answers.loss if score.name == LOSS else answers.correct
            rows[seed_of(run)] = sums / np.maximum(answers.units, 1e-9)
        part = weight * np.stack([rows[seed] for seed in seeds])
        largest = max(largest, float(np.abs(part).max()))
        total = part if total is None else total + part
    if total is None or not np.isfinite(total).all():
        return None
    # Equal answers differ by nothing, not by rounding.
    total[np.abs(total) < 1e-12 * largest] = 0.0
    return crossed_mean(total, first.units)


def _whole(run: RunRecord, answers: Answers) -> bool:
    """Whether the answers are to all examples that the run's score is of."""
    return len(answers.ids) == run.result.examples.get("test", len(answers.ids))


def _right_or_wrong(cell: Cell) -> bool:
    return cell.score.name == "accuracy" and cell.score.share


def _right(cell: Cell) -> dict[int, tuple[tuple[str, ...], np.ndarray]]:
    """{seed: (ids of the examples, which were right)} of the cell's runs that kept them."""
    found = {seed_of(run): answers_of(run) for run in cell.runs}
    return {
        seed: (answers.ids, answers.correct)
        for seed, answers in found.items()
        if answers is not None and (answers.units == 1).all()
    }
