"""What a sweep's data support and what they do not, in plain sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lora_jax.core.escapes import in_markdown
from lora_jax.metrics.score import Score
from lora_jax.statistics.interval import share_interval
from lora_jax.statistics.paired import detectable_difference
from lora_jax.statistics.variance import REST, Decomposition
from lora_jax.sweeps.cells import UNLIKE, Cell, axes, facets, measure
from lora_jax.sweeps.comparisons import (
    Comparison,
    ExampleTest,
    adapters,
    against_best,
    between_levels,
    on_examples,
    seed_deviation,
    spread,
)

LEVEL = 0.05


@dataclass(frozen=True)
class Conclusions:
    """Sentences of Markdown, without lists inside. `supported` may be empty: then nothing is."""

    supported: tuple[str, ...]
    unsupported: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """Tests and sources of spread of the adapters of a sweep, and what follows from them."""

    against_best: tuple[Comparison, ...]
    between_levels: tuple[Comparison, ...]
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


def conclude(
    cells: Sequence[Cell],
    tests: Sequence[Comparison],
    contrasts: Sequence[Comparison],
    table: Decomposition | None,
    missing: int,
    examples: Sequence[ExampleTest] = (),
) -> Conclusions:
    """Sentences about these adapters, from their tests; `missing` is how many planned runs have no
    result.
    """
    said = measure(cells)
    seeds = {cell.seeds for cell in cells}
    supported: list[str] = []
    unsupported: list[str] = []
    if max(seeds) == 1:
        unsupported += _one_seed(cells, said)
    else:
        supported += [_contrast(one, said) for one in contrasts if one.adjusted < LEVEL]
        parts = [(alike, _of_these(tests, alike)) for alike in facets(cells).values()]
        supported += [text for alike, own in parts for text in _best(alike, own, said)]
        unsupported += _undecided(contrasts, said)
        unsupported += [text for _, own in parts for text in _near_best(own)]
        unsupported += _few_seeds(cells, said)

    if table is not None and max(seeds) > 1:
        named = _sources(table)
        supported += named
        if not named and not math.isnan(table.sources[0].p):
            unsupported.append(
                "No axis explains more of the spread between runs than chance would."
            )
    if table is not None and table.trends:
        unsupported.append(
            f"Of {_listed(table.trends)} only a straight line is looked at in the spread between "
            "runs, as there are many different values: a best value in their middle would not show."
        )
    if table is not None and table.left_out:
        unsupported.append(
            f"What {_listed(table.left_out)} do together is not told apart from the rest: they "
            "have too many levels."
        )

    for alike in facets(cells).values():
        supported += _on_examples([one for one in examples if one.best in alike])
    unsupported += _unlike(cells)
    if missing:
        unsupported.append(
            f"{missing} planned run{'s have' if missing > 1 else ' has'} no result: the best "
            "setting may be among them, and averages leave them out."
        )
    if len(cells) > 1:
        unsupported.append(
            "The best setting was picked by its score on the test set, which makes that score a "
            "little too high; a fresh test set, or a choice by the validation score, would not "
            "have this fault."
        )
    return Conclusions(tuple(supported), tuple(unsupported))


def _of_these(tests: Sequence[Comparison], cells: Sequence[Cell]) -> list[Comparison]:
    """The tests whose best cell is one of these: no two cells of a report have one name."""
    names = {cell.name for cell in cells}
    return [one for one in tests if one.first in names]


def _one_seed(cells: Sequence[Cell], said: Score) -> list[str]:
    text = [
        "**No comparison between settings is supported: there is one seed a setting.** Another "
        "seed could turn any order in the tables round, and how far seeds differ is not known. Run "
        "the same command with more seeds, such as `--config.sweep.seeds=0,1,2,3,4`: finished runs "
        "are kept.",
    ]
    return text + [
        sentence
        for words, alike in facets(cells).items()
        for sentence in _by_size_alone(alike, said, f" of {in_markdown(words)}" if words else "")
    ]


def _by_size_alone(cells: Sequence[Cell], said: Score, which: str) -> list[str]:
    best = max(cells, key=lambda cell: cell.merit)
    examples = best.score.count
    # Only a share of independent right answers has an interval by the test set's size alone.
    if not best.score.share or not examples:
        return []

    interval = share_interval(round(best.value * examples), examples)
    beside = sum(cell.value >= interval.low for cell in cells) - 1
    return [
        f"The {examples} test examples{which} alone leave the best {said.label} "
        f"({said.text(best.value)}) between {said.text(interval.low)} and {said.text(interval.high)} (95%, Wilson); {beside} "
        f"of the other {len(cells) - 1} settings {'lies' if beside == 1 else 'lie'} above the "
        "lower limit.",
    ]


def _unlike(cells: Sequence[Cell]) -> list[str]:
    columns = axes(cells)
    named = [
        f"{len(set(columns[name]))} {words}" for name, words in UNLIKE.items() if name in columns
    ]
    if not named:
        return []
    return [
        f"These runs are of {' and '.join(named)}, which every name and line says: a score on one "
        "is not compared with a score on another, so there is no map over the grid, and the best of "
        "each stands by itself."
    ]


def _on_examples(tests: Sequence[ExampleTest]) -> list[str]:
    beaten = [one for one in tests if one.adjusted < LEVEL]
    if not tests:
        return []
    best, seeds = in_markdown(tests[0].best.name), max(one.seeds for one in tests)
    return [
        f"On new examples these trained models would differ as follows: **{best}** is right on "
        f"more test examples than {len(beaten)} of the {len(tests)} others whose answers were "
        f"kept, corrected for all pairs of settings ({tests[0].examples} examples, "
        f"{_count(seeds, 'seed')}). This says nothing about other seeds."
    ]


def _contrast(one: Comparison, said: Score) -> str:
    first_wins = (one.test.difference > 0) == said.higher_is_better
    better, worse = map(in_markdown, (one.first, one.second)[:: 1 if first_wins else -1])
    low, high = sorted((one.test.low, one.test.high), key=abs)
    wins = one.wins if first_wins else one.matched - one.wins
    return (
        f"{_axis(one.axis)} **{better}** beats {worse} by "
        f"{said.difference(abs(one.test.difference), '')}{said.points} (95% interval "
        f"{said.difference(abs(low), '')} to {said.difference(abs(high), '')}; {_p(one.adjusted)} "
        f"after correction), on average over {_count(one.matched, 'matched setting')}, {wins} of "
        f"which agree, and {_count(one.test.count, 'seed')}."
    )


def _best(cells: Sequence[Cell], tests: Sequence[Comparison], said: Score) -> list[str]:
    beaten = [one for one in tests if one.adjusted < LEVEL]
    if not beaten:
        return []
    best = max(cells, key=lambda cell: cell.merit)
    return [
        f"The setting with the {said.best} mean, **{in_markdown(best.name)}** "
        f"({said.text(best.value)}), beats "
        f"{len(beaten)} of the {len(cells) - 1} others under the same seeds, corrected for all "
        "pairs of settings."
    ]


def _near_best(tests: Sequence[Comparison]) -> list[str]:
    near = [one for one in tests if not one.adjusted < LEVEL]
    if not near:
        return []
    named = ", ".join(in_markdown(one.second) for one in near[:4])
    more = f" and {len(near) - 4} more" if len(near) > 4 else ""
    return [
        f"That **{in_markdown(near[0].first)}** is better than {named}{more} is not shown: after "
        "correction, seeds alone could make these differences."
    ]


def _undecided(contrasts: Sequence[Comparison], said: Score) -> list[str]:
    open_ones = [one for one in contrasts if not one.adjusted < LEVEL]
    sentences = []
    for one in open_ones[:6]:
        low, high = said.difference(one.test.low), said.difference(one.test.high)
        known = not math.isnan(one.test.low)
        limits = f" (95% interval {low} to {high}{said.points})" if known else ""
        sentences.append(
            f"{_axis(one.axis)} {in_markdown(one.first)} against {in_markdown(one.second)}: no "
            f"difference is shown{limits}."
        )
    if len(open_ones) > 6:
        sentences.append(
            f"{len(open_ones) - 6} more pairs of levels differ by less than the seeds can tell; "
            "they are in the table of paired tests."
        )
    return sentences


def _few_seeds(cells: Sequence[Cell], said: Score) -> list[str]:
    deviation = seed_deviation(cells)
    seeds = statistics.median(cell.seeds for cell in cells)
    # Seeds that all agree to the last digit, or a single one in most settings, show no spread.
    if not deviation or seeds < 2:
        return []

    smallest = detectable_difference(math.sqrt(2) * deviation, int(seeds))
    text = (
        f"Two single settings must differ by about {said.number(smallest)}{said.points} to be told "
        f"apart four times in five with {int(seeds)} seeds, before any correction: within a "
        f"setting, {said.label} has a standard deviation of "
        f"{said.difference(deviation, '')}{said.points} over seeds."
    )
    if seeds < 5:
        text += (
            " With fewer than five seeds the tests lean on the assumption that differences are "
            "normal."
        )
    return [text]


def _sources(table: Decomposition) -> list[str]:
    named = sorted(
        (source for source in table.sources if source.name != REST and source.p < LEVEL),
        key=lambda source: -source.share,
    )
    if not named:
        return []
    words = ", ".join(
        f"{in_markdown(source.name)} {100 * source.share:.0f}%" for source in named[:4]
    )
    many = "each of them more" if len(named) > 1 else "more"
    return [
        f"Of the spread between runs (sum of squares), {words}: {many} than chance would explain. "
        f"The rest is {100 * table[REST].share:.0f}%."
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(in_markdown, names))


def _axis(name: str) -> str:
    return in_markdown(f"{name[0].upper()}{name[1:]}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _p(value: float) -> str:
    return f"p = {value:.1g}" if value >= 1e-4 else "p < 0.0001"
