"""What a sweep's data support and what they do not, in plain sentences."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence, Set
from dataclasses import dataclass

from lora_jax.core.escapes import in_markdown
from lora_jax.metrics.score import Score
from lora_jax.statistics.interval import share_interval
from lora_jax.statistics.paired import detectable_difference, holm, pairs_needed
from lora_jax.statistics.variance import REST, Decomposition, Source
from lora_jax.sweeps.cells import UNLIKE, Cell, axes, facets, levels, measure, shown
from lora_jax.sweeps.comparisons import (
    COUNTED,
    LOSS,
    ByScore,
    Comparison,
    ExampleTest,
    choice,
    paired_deviation,
    ranked,
    seed_deviation,
)
from lora_jax.sweeps.guards import limits_of

LEVEL = 0.05


@dataclass(frozen=True)
class Conclusions:
    """Sentences of Markdown, without lists inside: differences that are supported, settings that
    are shown to be alike, and what stays open. Each may be empty: then nothing is.
    """

    supported: tuple[str, ...]
    unsupported: tuple[str, ...]
    alike: tuple[str, ...] = ()


def conclude(
    cells: Sequence[Cell],
    tests: Sequence[Comparison],
    contrasts: Sequence[Comparison],
    table: Decomposition | None,
    missing: int,
    examples: Sequence[ExampleTest] = (),
    *,
    slopes: Sequence[Comparison] = (),
    baselines: Sequence[Comparison] = (),
    by_loss: ByScore | None = None,
    margin: float | None = None,
) -> Conclusions:
    """Sentences about these adapters, from their tests; `missing` is how many planned runs have no
    result, `margin` the smallest difference that matters. What `by_loss` alone shows is said beside
    what the primary metric shows.
    """
    said, by_loss = measure(cells), by_loss or ByScore()
    supported: list[str] = []
    unsupported: list[str] = []
    alike: list[str] = []
    if max(cell.seeds for cell in cells) == 1:
        unsupported += _one_seed(cells, said)
    else:
        supported += _differences(cells, contrasts, slopes, by_loss, said)
        parts = [(same, _of_these(tests, same)) for same in facets(cells).values()]
        supported += [text for same, own in parts for text in _best(same, own, said)]
        if margin is not None:
            alike += _alike(cells, contrasts, margin, said)
        supported += [_baseline(one, said) for one in baselines if one.adjusted < LEVEL]
        unsupported += _undecided([*contrasts, *baselines], said)
        unsupported += [text for _, own in parts for text in _near_best(own, said)]
        for words, same in facets(cells).items():
            unsupported += _few_seeds(same, said, f"Of {in_markdown(words)}: " if words else "")
        unsupported += [text for same, own in parts for text in _power(same, own, said)]
        unsupported += _one_test_set([*contrasts, *tests], said)
        for one, which in ((table, ""), (by_loss.spread, " by test loss")):
            supported += _sources(one, which) if one is not None else []
        if table is not None and not _explaining(table) and not math.isnan(table.sources[0].p):
            unsupported.append(
                f"No axis explains more of the spread of test {said.label} between runs than chance "
                "would."
            )

    unsupported += _not_looked_at(table)
    for same in facets(cells).values():
        supported += _on_examples([one for one in examples if one.best in same])
        unsupported += limits_of(same)
    unsupported += _unlike(cells)
    if missing:
        unsupported.append(
            f"{missing} planned run{'s have' if missing > 1 else ' has'} no result: the best "
            "setting may be among them, and averages leave them out."
        )
    if len(cells) > 1 and choice(cells).split == "test":
        unsupported.append(
            "The best setting was picked by its score on the test set, as not all runs have a "
            "validation score, which makes that score a little too high; a fresh test set, or a "
            "choice by the validation score, would not have this fault."
        )
    return Conclusions(tuple(supported), tuple(unsupported), tuple(alike))


def _not_looked_at(table: Decomposition | None) -> list[str]:
    text = []
    if table is not None and table.trends:
        text.append(
            f"Of {_listed(table.trends)} only a straight line is looked at in the spread between "
            "runs, as there are many different values: a best value in their middle would not show."
        )
    if table is not None and table.left_out:
        text.append(
            f"What {_listed(table.left_out)} do together is not told apart from the rest: they "
            "have too many levels."
        )
    return text


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
    best = ranked(cells)[0]
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
        "lower limit. The interval is of other test examples for this one trained model, and holds "
        "nothing of other seeds.",
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


def _differences(
    cells: Sequence[Cell],
    contrasts: Sequence[Comparison],
    slopes: Sequence[Comparison],
    by_loss: ByScore,
    said: Score,
) -> list[str]:
    """What levels and slopes show, by the primary metric and then by the loss alone."""
    loss = {(one.axis, one.first, one.second): one for one in by_loss.between_levels}
    shown_by_loss = {key: one for key, one in loss.items() if one.adjusted < LEVEL}
    text = []
    for one in (one for one in contrasts if one.adjusted < LEVEL):
        too = shown_by_loss.pop((one.axis, one.first, one.second), None)
        text.append(_contrast(one, said) + _by_loss_too(one, too, said))
    text += [_slope(one, said) for one in slopes if one.adjusted < LEVEL]
    if shown_by_loss:
        score = cells[0].runs[0].result.score("test", LOSS)
        text += [f"By test loss: {_contrast(one, score)}" for one in shown_by_loss.values()]
    return text


def _by_loss_too(one: Comparison, loss: Comparison | None, said: Score) -> str:
    if loss is None:
        return ""
    # The lower loss is the better one.
    if _first_wins(one, said) == (loss.test.difference < 0):
        return f" By test loss, too ({_p(loss.adjusted)})."
    return f" By test loss it is the other way round ({_p(loss.adjusted)})."


def _contrast(one: Comparison, said: Score) -> str:
    first_wins = _first_wins(one, said)
    better, worse = map(in_markdown, (one.first, one.second)[:: 1 if first_wins else -1])
    wins = one.wins if first_wins else one.matched - one.wins
    return (
        f"{_axis(one.axis)} **{better}** beats {worse} by "
        f"{_size(one, said)} {_judged(one, said)}, on average over "
        f"{_count(one.matched, 'matched setting')}, {wins} of "
        f"which agree, and {_count(one.test.count, 'seed')}."
    )


def _baseline(one: Comparison, said: Score) -> str:
    above = "above" if one.test.difference > 0 else "below"
    better = one.wins if _first_wins(one, said) else one.matched - one.wins
    word = "better" if _first_wins(one, said) else "worse"
    return (
        f"The {in_markdown(one.first)} is {_size(one, said)} of test {said.label} {above} "
        f"**{in_markdown(one.second)}** {_judged(one, said)}, and {better} of "
        f"{one.matched} are {word}, over {_count(one.test.count, 'seed')}."
    )


def _slope(one: Comparison, said: Score) -> str:
    rises = "rises" if one.test.difference > 0 else "falls"
    return (
        f"With each doubling of {in_markdown(one.axis)}, test {said.label} {rises} by "
        f"{_size(one, said)} {_judged(one, said)}, along a straight line, on average over "
        f"{_count(one.matched, 'matched setting')} and {_count(one.test.count, 'seed')}."
    )


def _size(one: Comparison, said: Score) -> str:
    return f"{said.difference(abs(one.test.difference), '')}{said.points}"


def _judged(one: Comparison, said: Score) -> str:
    return f"({_interval(one, said)}; {_p(one.adjusted)} after correction)"


def _interval(one: Comparison, said: Score) -> str:
    low, high = sorted(one.limits, key=abs)
    of = "" if one.crossed is None else " over seeds and examples"
    return f"95% interval{of} {said.difference(abs(low), '')} to {said.difference(abs(high), '')}"


def _first_wins(one: Comparison, said: Score) -> bool:
    return (one.test.difference > 0) == said.higher_is_better


def _best(cells: Sequence[Cell], tests: Sequence[Comparison], said: Score) -> list[str]:
    beaten = [one for one in tests if one.adjusted < LEVEL and _first_wins(one, said)]
    if not beaten:
        return []
    best = ranked(cells)[0]
    return [
        f"The setting with {choice(cells).words}, **{in_markdown(best.name)}** "
        f"({said.text(best.value)} on the test set), beats "
        f"{len(beaten)} of the {len(cells) - 1} others under the same seeds, corrected for all "
        "pairs of settings."
    ]


def _near_best(tests: Sequence[Comparison], said: Score) -> list[str]:
    near = [one for one in tests if not (one.adjusted < LEVEL and _first_wins(one, said))]
    if not near:
        return []
    named = ", ".join(in_markdown(one.second) for one in near[:4])
    more = f" and {len(near) - 4} more" if len(near) > 4 else ""
    return [
        f"That **{in_markdown(near[0].first)}** is better than {named}{more} is not shown: after "
        "correction, seeds alone could make these differences."
    ]


def _alike(
    cells: Sequence[Cell], contrasts: Sequence[Comparison], margin: float, said: Score
) -> list[str]:
    """Levels all pairs of which differ by less than the margin, along each axis."""
    adjusted = holm([one.p_within(margin) for one in contrasts])
    within = {
        (one.axis, frozenset((one.first, one.second))): (float(p), one)
        for one, p in zip(contrasts, adjusted, strict=True)
        if p < LEVEL
    }
    size = f"{said.difference(margin, '')}{said.points}"
    text = []
    for axis, column in axes(cells).items():
        names = [shown(level) for level in levels(column)]
        for group in _groups(names, {pair for name, pair in within if name == axis}):
            pairs = [within[axis, frozenset(pair)] for pair in itertools.combinations(group, 2)]
            largest = max(abs(one.test.difference) for _, one in pairs)
            ends = f"**{in_markdown(group[0])}** to **{in_markdown(group[-1])}**"
            # Words are no range, and neither are two.
            if len(group) == 2 or isinstance(column[0], str):
                ends = " and ".join(f"**{in_markdown(name)}**" for name in group)
            text.append(
                f"{_axis(axis)} {ends}: no difference larger than {size} "
                f"({'they differ' if len(group) == 2 else 'the farthest differ'} by "
                f"{said.difference(largest, '')}; equivalence test, "
                f"{_p(max(p for p, _ in pairs))} after correction), on average over "
                f"{_count(pairs[0][1].matched, 'matched setting')} and "
                f"{_count(pairs[0][1].test.count, 'seed')}."
            )
    return text


def _groups(names: Sequence[str], pairs: Set[frozenset[str]]) -> list[tuple[str, ...]]:
    """Neighbours that are all alike, as many as there are in a row, then pairs that are left."""
    found: list[tuple[str, ...]] = []
    for start in range(len(names)):
        end = start + 1
        while end < len(names) and all(
            frozenset((names[end], one)) in pairs for one in names[start:end]
        ):
            end += 1
        group = tuple(names[start:end])
        if len(group) > 1 and not any(set(group) <= set(before) for before in found):
            found.append(group)
    left = [
        pair
        for pair in itertools.combinations(names, 2)
        if frozenset(pair) in pairs and not any(set(pair) <= set(group) for group in found)
    ]
    return found + left


def _undecided(contrasts: Sequence[Comparison], said: Score) -> list[str]:
    open_ones = [one for one in contrasts if not one.adjusted < LEVEL]
    sentences = []
    for one in open_ones[:6]:
        low, high = map(said.difference, one.limits)
        known = not math.isnan(one.test.low)
        limits = f" (95% interval {low} to {high}{said.points})" if known else ""
        alone = known and one.limits[0] * one.limits[1] > 0
        corrected = ": by itself it would be, and not among all that are looked at" if alone else ""
        sentences.append(
            f"{_axis(one.axis)} {in_markdown(one.first)} against {in_markdown(one.second)}: no "
            f"difference is shown{limits}{corrected}."
        )
    if len(open_ones) > 6:
        sentences.append(
            f"{len(open_ones) - 6} more pairs of levels differ by less than the seeds can tell; "
            "they are in the table of paired tests."
        )
    return sentences


def _few_seeds(cells: Sequence[Cell], said: Score, which: str) -> list[str]:
    deviation, paired = seed_deviation(cells), paired_deviation(cells)
    seeds = statistics.median(cell.seeds for cell in cells)
    # Seeds that all agree to the last digit, or a single one in most settings, show no spread.
    if not deviation or not paired or seeds < 2:
        return []

    smallest = detectable_difference(paired, int(seeds))
    text = (
        f"{which}{'two' if which else 'Two'} single settings must differ by about {said.number(smallest)}{said.points} to be told "
        f"apart four times in five with {int(seeds)} seeds, before any correction: within a "
        f"setting, {said.label} has a standard deviation of "
        f"{said.difference(deviation, '')}{said.points} over seeds, and the difference of two "
        f"settings one of {said.difference(paired, '')}{said.points}."
    )
    if seeds < 5:
        text += (
            " With fewer than five seeds the tests lean on the assumption that differences are "
            "normal."
        )
    return [text]


def _power(cells: Sequence[Cell], tests: Sequence[Comparison], said: Score) -> list[str]:
    """How many seeds would separate the two best."""
    paired = paired_deviation(cells)
    if len(cells) < 2 or not paired:
        return []
    best, second = ranked(cells)[:2]
    if any(one.second == second.name and one.adjusted < LEVEL for one in tests):
        return []
    gap = best.value - second.value
    needed = pairs_needed(gap, paired)
    return [
        f"To tell the two best, {in_markdown(best.name)} and {in_markdown(second.name)}, apart four "
        f"times in five would take "
        f"{'more than 10,000' if needed is None else f'about {needed:,}'} seeds, if they differ by "
        f"{said.difference(abs(gap), '')}{said.points} as here."
    ]


def _one_test_set(tests: Sequence[Comparison], said: Score) -> list[str]:
    if not tests or all(one.crossed is not None for one in tests):
        return []
    text = (
        "Intervals are over seeds, on these test examples: how much other examples would move a "
        "difference is not in them."
    )
    if said.name in COUNTED:
        text += (
            " `lora-jax evaluate RUN RUN ...` keeps what each example of these runs gave; once all "
            "have it, intervals are over seeds and examples."
        )
    return [text]


def _explaining(table: Decomposition) -> list[Source]:
    """The sources that explain more than chance would, the largest first."""
    named = [one for one in table.sources if one.name != REST and one.adjusted < LEVEL]
    return sorted(named, key=lambda source: -source.share)


def _sources(table: Decomposition, which: str) -> list[str]:
    named = _explaining(table)
    if not named:
        return []
    words = ", ".join(
        f"{in_markdown(source.name)} {100 * source.share:.0f}%" for source in named[:4]
    )
    many = "each of them more" if len(named) > 1 else "more"
    return [
        f"Of the spread between runs{which} (sum of squares), {words}: {many} than chance would "
        f"explain, after correction. The rest is {100 * table[REST].share:.0f}%."
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(in_markdown, names))


def _axis(name: str) -> str:
    return in_markdown(f"{name[0].upper()}{name[1:]}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _p(value: float) -> str:
    return f"p = {value:.1g}" if value >= 1e-4 else "p < 0.0001"
