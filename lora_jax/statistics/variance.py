"""How much of the spread between runs each setting explains: analysis of variance of any grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, stats

REST = "rest"
# A number with more levels than this, such as a learning rate that a search drew, is one column:
# its trend. A column for each level, and for each pair of levels of two such factors, would be more
# columns than runs and more memory than there is.
_MOST_LEVELS = 12
_MOST_COLUMNS = 400  # of all interactions together; the largest are left out first


@dataclass(frozen=True)
class Source:
    """One row of the table.

    `share` is of the total sum of squares; `corrected` is omega squared, which chance does not
    raise. `p` is NaN where nothing is left to judge by. `freedom` 0: this cannot be told from
    the other sources.
    """

    name: str
    freedom: int
    sum_of_squares: float
    share: float
    corrected: float
    f: float
    p: float


@dataclass(frozen=True)
class Decomposition:
    """The sources of the spread, the rest last.

    `overlap` is the share of the spread that sources explain in common: 0 in a whole grid. `levels`
    is {factor: number of its levels}. `replicated`: whether the rest holds repeats of equal
    settings, so that it is the luck of the draw and not only interactions of three and more
    factors. `trends` are the factors of which only a straight line was fitted, in the logarithm
    where all levels are above 0; `left_out` the pairs of factors that have too many levels to be
    looked at.
    """

    sources: tuple[Source, ...]
    overlap: float
    total: float
    count: int
    levels: Mapping[str, int]
    replicated: bool
    trends: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Source:
        return next(source for source in self.sources if source.name == name)


def decompose(
    factors: Mapping[str, Sequence[object]], values: Sequence[float], *, blocks: Sequence[str] = ()
) -> Decomposition:
    """The sums of squares of each factor, of each pair of factors together beyond their own (their
    interaction), and of the rest.

    Sums of squares of type II (Yates 1934): of a factor, what it adds to a model of all the others;
    of an interaction, what it adds to all factors and all other interactions. In a whole grid these
    are the classical ones and add up to the total.

    Args:
        factors: {name: the level of each run}.
        values: the score of each run.
        blocks: factors that have no interactions, such as the seed: what it does differently from
            setting to setting is the rest.

    Raises:
        ValueError: lengths differ, there are fewer than two runs, or no factor has two levels.
    """
    y = np.asarray(values, np.float64)
    if y.size < 2 or any(len(column) != y.size for column in factors.values()):
        raise ValueError(
            f"Each factor needs a level for each of two or more runs, got {y.size} runs and "
            f"{ {k: len(v) for k, v in factors.items()} }."
        )
    counts = {name: len(set(map(_key, column))) for name, column in factors.items()}
    trends = tuple(
        name
        for name, column in factors.items()
        if counts[name] > _MOST_LEVELS and name not in blocks and _are_numbers(column)
    )
    coded = {
        name: _trend(column) if name in trends else _codes(column)
        for name, column in factors.items()
        if counts[name] > 1
    }
    if not coded:
        raise ValueError(
            "No factor differs between the runs: there is nothing to explain their spread by."
        )
    crossed = [name for name in coded if name not in blocks]
    pairs, left_out = _pairs_that_fit(crossed, {name: coded[name].shape[1] for name in crossed})

    mains = [(name,) for name in coded]
    model = _Model({term: _columns(term, coded) for term in (*mains, *pairs)}, y)
    residual, used = model.residual([*mains, *pairs])
    rest_freedom = y.size - 1 - used
    noise = residual / rest_freedom if rest_freedom > 0 else math.nan

    found = []
    for term in (*mains, *pairs):
        beside = mains if len(term) == 1 else [*mains, *pairs]
        others = [other for other in beside if other != term]
        without, fewer = model.residual(others)
        with_it, more = model.residual([*others, term])
        squares = max(without - with_it, 0.0)
        name = " × ".join(term)
        found.append(_source(name, more - fewer, squares, model.total, noise, rest_freedom))
    share = residual / model.total if model.total else 0.0
    found.append(Source(REST, rest_freedom, residual, share, share, math.nan, math.nan))

    settings = {tuple(_key(factors[name][run]) for name in crossed) for run in range(y.size)}
    return Decomposition(
        sources=tuple(found),
        overlap=1 - sum(source.share for source in found) if model.total else 0.0,
        total=model.total,
        count=y.size,
        levels={name: counts[name] for name in coded},
        replicated=len(settings) < y.size,
        trends=trends,
        left_out=tuple(" × ".join(pair) for pair in left_out),
    )


def _pairs_that_fit(
    crossed: Sequence[str], widths: Mapping[str, int]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The pairs of factors whose interactions are looked at, and those left out, the largest."""

    def size(pair: tuple[str, ...]) -> int:
        return widths[pair[0]] * widths[pair[1]]

    pairs = list(itertools.combinations(crossed, 2))
    by_size = sorted(pairs, key=size)
    ends = itertools.accumulate(map(size, by_size))
    left_out = [pair for pair, end in zip(by_size, ends) if end > _MOST_COLUMNS]
    return [pair for pair in pairs if pair not in left_out], left_out


def _columns(term: tuple[str, ...], coded: Mapping[str, np.ndarray]) -> np.ndarray:
    """The columns of a factor, or of a pair: all products of theirs."""
    if len(term) == 1:
        return coded[term[0]]
    one, other = (coded[name] for name in term)
    return (one[:, :, None] * other[:, None, :]).reshape(len(one), -1)


class _Model:
    """Residual sums of squares of any choice of terms, from one matrix of products."""

    def __init__(self, terms: Mapping[tuple[str, ...], np.ndarray], y: np.ndarray) -> None:
        y = y - y.mean()
        design = np.concatenate([*terms.values()], axis=1)
        design = design - design.mean(axis=0)
        self._gram, self._sides = design.T @ design, design.T @ y
        self.total = float(y @ y)
        ends = np.cumsum([matrix.shape[1] for matrix in terms.values()])
        self._where = {
            term: np.arange(end - matrix.shape[1], end)
            for (term, matrix), end in zip(terms.items(), ends)
        }
        self._known: dict[frozenset[tuple[str, ...]], tuple[float, int]] = {}

    def residual(self, terms: Sequence[tuple[str, ...]]) -> tuple[float, int]:
        """(residual sum of squares, columns that count) of the terms."""
        key = frozenset(terms)
        if key not in self._known:
            places = [np.array([], int), *(self._where[term] for term in terms)]
            columns = np.sort(np.concatenate(places))
            gram = self._gram[np.ix_(columns, columns)]
            explained, freedom = _projection(gram, self._sides[columns])
            self._known[key] = (max(self.total - explained, 0.0), freedom)
        return self._known[key]


def _projection(gram: np.ndarray, sides: np.ndarray) -> tuple[float, int]:
    """(squared length of the projection on the columns, how many of them count)."""
    try:
        root = np.linalg.cholesky(gram)
        if gram.size and np.diag(root).min() ** 2 > 1e-9 * np.diag(gram).max():
            return float(np.sum(linalg.solve_triangular(root, sides, lower=True) ** 2)), len(sides)
    except np.linalg.LinAlgError:
        pass
    # Columns that depend on each other, as in grids with holes: only the directions that are there.
    values, vectors = np.linalg.eigh(gram)
    sound = values > 1e-9 * max(values.max(initial=0.0), 1e-300)
    return float(np.sum((vectors[:, sound].T @ sides) ** 2 / values[sound])), int(sound.sum())


def _source(
    name: str, freedom: int, squares: float, total: float, noise: float, rest_freedom: int
) -> Source:
    if not freedom or not total:
        return Source(name, freedom, 0.0, 0.0, 0.0, math.nan, math.nan)
    corrected = f = p = math.nan
    # Else nothing is left to compare with, or nothing but rounding.
    if noise > 1e-14 * total:
        f = squares / freedom / noise
        corrected = max((squares - freedom * noise) / (total + noise), 0.0)
        p = float(stats.f.sf(f, freedom, rest_freedom))
    return Source(name, freedom, squares, squares / total, corrected, f, p)


def _codes(column: Sequence[object]) -> np.ndarray:
    """One column a level but the last, which is -1 in all: they sum to 0 over levels, so that main
    effects are those of the average.
    """
    levels = sorted(set(map(_key, column)))
    place = {level: index for index, level in enumerate(levels)}
    matrix = np.zeros((len(column), len(levels)))
    matrix[np.arange(len(column)), [place[_key(level)] for level in column]] = 1
    return matrix[:, :-1] - matrix[:, -1:]


def _are_numbers(column: Sequence[object]) -> bool:
    return all(isinstance(level, (int, float)) and not isinstance(level, bool) for level in column)


def _trend(column: Sequence[object]) -> np.ndarray:
    """One column: the number, or its logarithm where all are above 0, with mean 0 and deviation
    1.
    """
    values = np.asarray(column, np.float64)
    values = np.log(values) if (values > 0).all() else values
    return ((values - values.mean()) / values.std())[:, None]


def _key(level: object) -> tuple[str, str]:
    return type(level).__name__, str(level)
