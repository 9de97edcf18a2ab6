"""How much of the spread between runs each setting explains: analysis of variance of any grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import linalg, stats

from lora_jax.statistics.paired import holm

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
    raise: the share among just these levels, as of fixed effects. `p` is NaN where nothing is left
    to judge by; `adjusted` is Holm's among all sources but blocks. `freedom` 0: this cannot be told
    from the other sources. `against` is what it was tested against, and `error_freedom` the degrees
    of freedom of that.
    """

    name: str
    freedom: int
    sum_of_squares: float
    share: float
    corrected: float
    f: float
    p: float
    against: str = ""
    error_freedom: int = 0
    adjusted: float = math.nan


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
    factors: Mapping[str, Sequence[object]],
    values: Sequence[float],
    *,
    blocks: Sequence[str] = (),
    trends: Sequence[str] = (),
) -> Decomposition:
    """The sums of squares of each factor, of each pair of factors together beyond their own (their
    interaction), and of the rest.

    Sums of squares of type II (Yates 1934): of a factor, what it adds to a model of all the others;
    of an interaction, what it adds to all factors and all other interactions. In a whole grid these
    are the classical ones and add up to the total.

    Settings that ran under the same seeds share the seeds' luck. So each source is tested against
    what seeds do to it, its interaction with the block, where seeds are crossed with its levels
    (Kirk 2013, chapter 10: treatments × blocks, blocks random), and else against the rest, in which
    the steadier sources would lend the others their steadiness.

    Args:
        factors: {name: the level of each run}.
        values: the score of each run.
        blocks: factors that have no interactions, such as the seed: what it does differently from
            setting to setting is the rest.
        trends: factors whose levels are numbers and of which a straight line is fitted, in the
            logarithm where all are above 0; so is one of more than 12 numbers.

    Raises:
        ValueError: lengths differ, there are fewer than two runs, no factor has two levels, or a
            trend is to be fitted to what is no number.
    """
    y = np.asarray(values, np.float64)
    coded, counts, trends = _coded(factors, y.size, blocks, trends)
    crossed = [name for name in coded if name not in blocks]
    widths = {name: matrix.shape[1] for name, matrix in coded.items()}
    pairs, left_out = _that_fit(list(itertools.combinations(crossed, 2)), widths)

    mains = [(name,) for name in coded]
    terms = [*mains, *pairs]
    luck = tuple(name for name in blocks if name in coded)
    own = [(*term, *luck) for term in terms if luck and term[0] in crossed]
    errors, _ = _that_fit(own, widths)
    model = _Model({term: _columns(term, coded) for term in (*terms, *errors)}, y)
    residual, used = model.residual(terms)
    rest = _Error(REST, residual, y.size - 1 - used)

    found = []
    for term in terms:
        error = rest
        if (*term, *luck) in errors:
            of_luck = _Error(_name((*term, *luck)), *model.added((*term, *luck), terms))
            error = of_luck if of_luck.freedom > 0 else rest
        squares, freedom = model.added(term, mains if len(term) == 1 else terms)
        found.append(_source(_name(term), freedom, squares, model.total, error))
    adjusted = holm([math.nan if one.name in blocks else one.p for one in found])
    found = [replace(one, adjusted=float(p)) for one, p in zip(found, adjusted, strict=True)]
    share = residual / model.total if model.total else 0.0
    found.append(Source(REST, rest.freedom, residual, share, share, math.nan, math.nan))

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


class _Error(NamedTuple):
    """What a source is tested against."""

    name: str
    squares: float
    freedom: int


def _name(term: tuple[str, ...]) -> str:
    return " × ".join(term)


def _coded(
    factors: Mapping[str, Sequence[object]], runs: int, blocks: Sequence[str], trends: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, int], tuple[str, ...]]:
    """The columns of each factor with two levels or more, how many levels each has, and of which a
    line is fitted.
    """
    if runs < 2 or any(len(column) != runs for column in factors.values()):
        raise ValueError(
            f"Each factor needs a level for each of two or more runs, got {runs} runs and "
            f"{ {k: len(v) for k, v in factors.items()} }."
        )
    counts = {name: len(set(map(_key, column))) for name, column in factors.items()}
    lines = tuple(
        name
        for name, column in factors.items()
        if name in trends
        or (counts[name] > _MOST_LEVELS and name not in blocks and _are_numbers(column))
    )
    words = [name for name in lines if not _are_numbers(factors[name])]
    if words:
        raise ValueError(f"A trend is of numbers, and levels of {', '.join(words)} are none.")
    coded = {
        name: _trend(column) if name in lines else _codes(column)
        for name, column in factors.items()
        if counts[name] > 1
    }
    if not coded:
        raise ValueError(
            "No factor differs between the runs: there is nothing to explain their spread by."
        )
    return coded, counts, lines


def _that_fit(
    terms: Sequence[tuple[str, ...]], widths: Mapping[str, int]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The terms that are looked at, and those left out: the largest."""
    size = lambda term: math.prod(widths[name] for name in term)
    by_size = sorted(terms, key=size)
    ends = itertools.accumulate(map(size, by_size))
    left_out = [term for term, end in zip(by_size, ends) if end > _MOST_COLUMNS]
    return [term for term in terms if term not in left_out], left_out


def _columns(term: tuple[str, ...], coded: Mapping[str, np.ndarray]) -> np.ndarray:
    """The columns of a factor, or of several: all products of theirs."""
    columns = coded[term[0]]
    for name in term[1:]:
        columns = (columns[:, :, None] * coded[name][:, None, :]).reshape(len(columns), -1)
    return columns


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

    def added(self, term: tuple[str, ...], beside: Sequence[tuple[str, ...]]) -> tuple[float, int]:
        """(sum of squares, columns that count) that the term adds to the others of `beside`."""
        others = [other for other in beside if other != term]
        without, fewer = self.residual(others)
        with_it, more = self.residual([*others, term])
        return max(without - with_it, 0.0), more - fewer

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


def _source(name: str, freedom: int, squares: float, total: float, error: _Error) -> Source:
    if not freedom or not total:
        return Source(name, freedom, 0.0, 0.0, 0.0, math.nan, math.nan)
    share = squares / total
    noise = error.squares / error.freedom if error.freedom > 0 else 0.0
    # Nothing is left to compare with, or nothing but rounding.
    if noise <= 1e-14 * total:
        return Source(name, freedom, squares, share, math.nan, math.nan, math.nan)
    f = squares / freedom / noise
    corrected = max((squares - freedom * noise) / (total + noise), 0.0)
    p = float(stats.f.sf(f, freedom, error.freedom))
    return Source(name, freedom, squares, share, corrected, f, p, error.name, error.freedom)


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
