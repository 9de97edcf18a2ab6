"""Maps of a report: heat maps over the grid, the score against memory and time, sources of spread,
differences with intervals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lora_jax.core.extras import needs
from lora_jax.metrics.score import Score
from lora_jax.statistics.variance import REST, Decomposition
from lora_jax.sweeps.cells import UNLIKE, Cell, axes, facets, front, measure, order
from lora_jax.sweeps.comparisons import Comparison
from lora_jax.sweeps.plot_style import (
    FAINT,
    FIXED_DARK,
    FIXED_LIGHT,
    INK,
    MUTED,
    PAPER,
    TARGET_MARKERS,
    cell_look,
    finish,
    name_points,
    new_figure,
    panels,
    plain_numbers,
    shortened,
)

with needs("report"):
    import matplotlib
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

_MOST_BARS = 14
_MOST_NAMES = 12  # beside points of a front


def heat_maps(cells: Sequence[Cell]) -> Figure | None:
    """Test score of rank × format, a panel for each target set, one colour scale; None without a
    grid of two axes, and where cells are of several data sets or models, whose mean says nothing.

    Cells that share all three are averaged.
    """
    adapters = [cell for cell in cells if cell.rank is not None]
    ranks = sorted({cell.rank for cell in adapters})
    formats = list(dict.fromkeys(cell.format for cell in sorted(adapters, key=order)))
    targets = list(dict.fromkeys(cell.targets for cell in adapters))
    grid_axes = sum(len(axis) > 1 for axis in (ranks, formats, targets))
    if grid_axes < 2 or UNLIKE.keys() & axes(adapters):
        return None

    said = measure(cells)
    by_targets = len(formats) == 1  # then targets are the second axis, in one panel
    rows = targets if by_targets else formats
    shown_panels = [None] if by_targets else targets
    scores: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    for cell in adapters:
        panel = 0 if by_targets else targets.index(cell.targets)
        row = rows.index(cell.targets if by_targets else cell.format)
        scores[panel, row, ranks.index(cell.rank)].append(cell.value)
    values = np.full((len(shown_panels), len(rows), len(ranks)), np.nan)
    for place, found in scores.items():
        values[place] = sum(found) / len(found)

    width, height = max(2.6, 0.75 * len(ranks) + 1.2), max(1.9, 0.55 * len(rows) + 1.1)
    figure, drawn = panels(len(shown_panels), width=width, height=height)
    limits = (np.nanmin(values), np.nanmax(values))
    for axis, panel, chosen in zip(drawn, values, shown_panels, strict=True):
        image = _heat_map(axis, panel, limits, said)
        axis.set_xticks(np.arange(len(ranks)) + 0.5, [str(rank) for rank in ranks])
        names = [shortened(str(row), 24) for row in rows]
        axis.set_yticks(np.arange(len(rows)) + 0.5, names)
        title = "" if chosen is None else f"Targets: {shortened(str(chosen), 30)}"
        axis.set(xlabel="LoRA rank", title=title)
    drawn[0].invert_yaxis()  # once: the panels share it
    drawn[0].set_ylabel("targets" if by_targets else "frozen base")

    averaged = " and over all other axes" if len(adapters) > len(scores) else ""
    detail = f"mean over seeds{averaged}; one colour scale"
    finish(figure, None, f"{said.axis} over the grid\n{detail}")
    _colour_bar(figure, drawn, image, said)
    return figure


def _heat_map(axis: Any, values: np.ndarray, limits: tuple[float, float], said: Score) -> QuadMesh:
    """Draws one panel with its scores written into the squares."""
    low, high = limits
    shades = matplotlib.colormaps["viridis"]
    image = axis.pcolormesh(
        values, cmap=shades, vmin=low, vmax=high, edgecolors=PAPER, linewidth=1.5
    )
    for (row, column), value in np.ndenumerate(values):
        place, centred = (column + 0.5, row + 0.5), dict(ha="center", va="center")
        if np.isnan(value):
            axis.text(*place, "–", color=MUTED, **centred)
            continue
        is_light_ground = high > low and (value - low) / (high - low) > 0.6
        colour = FIXED_DARK if is_light_ground else FIXED_LIGHT
        axis.text(*place, said.number(value), color=colour, fontsize=9, **centred)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return image


def _colour_bar(figure: Figure, drawn: Sequence[Any], image: QuadMesh, said: Score) -> None:
    """One colour scale at the right, from the lowest panel to the highest."""
    width, _ = figure.get_size_inches()
    figure.subplots_adjust(right=1 - 1.15 / width)
    bottom, top = drawn[-1].get_position().y0, drawn[0].get_position().y1
    ground = figure.add_axes((1 - 0.95 / width, bottom, 0.16 / width, top - bottom))
    bar = figure.colorbar(image, cax=ground)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.set_label(said.axis, fontsize=9)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{said.factor * value:g}")


def memory_front(cells: Sequence[Cell]) -> Figure | None:
    """Test score against the bytes of base and adapter, the Pareto front joined and named."""
    return _front(
        cells,
        lambda cell: None if cell.stored_bytes is None else cell.stored_bytes / 1e6,
        "against stored size\nrimmed: no smaller cell is as good",
        "Base + adapter, as stored (MB = 10⁶ bytes)",
    )


def time_front(cells: Sequence[Cell]) -> Figure | None:
    """Test score against the time of a run, without its compilation, the Pareto front joined and
    named.
    """
    detail = "rimmed: no faster cell is as good; without compilation, mean over seeds"
    return _front(
        cells,
        _training_seconds,
        f"against time of a run\n{detail}",
        "Time of a run without compilation (s)",
    )


def _training_seconds(cell: Cell) -> float | None:
    """Mean time of the cell's runs without compilation: which of several runs compiles is chance.
    None where it is not known.
    """
    seconds = cell.mean("seconds")
    return None if seconds is None else seconds - (cell.mean("compile_seconds") or 0.0)


def spread_bars(table: Decomposition | None) -> Figure | None:
    """Share of the spread between runs that each source explains, largest first, the rest last."""
    if table is None or not table.total:
        return None
    sources = sorted(
        (source for source in table.sources if source.name != REST and source.share > 0),
        key=lambda source: -source.share,
    )
    sources = [*sources[: _MOST_BARS - 1], table[REST]]
    figure, axis = new_figure(8, 0.36 * len(sources) + 1.5)
    for place, source in enumerate(sources):
        chance = source.name == REST or not source.adjusted < 0.05
        axis.barh(place, 100 * source.share, height=0.68, color=FAINT if chance else "#0072B2")
        text = f"{100 * source.share:.1f}%"
        if source.name != REST and not np.isnan(source.adjusted):
            text += f"   p = {source.adjusted:.2g}" if source.adjusted >= 1e-4 else "   p < 0.0001"
        axis.text(100 * source.share + 0.8, place, text, va="center", fontsize=8.5)

    if table.replicated:
        rest = "rest: luck of the seed in a setting"
        judged = "blue: more than chance explains (F test, p < 0.05, corrected by Holm)"
    else:
        rest = "rest: three axes and more"
        judged = "one seed a setting: no source can be told from chance"
    names = [rest if source.name == REST else source.name for source in sources]
    axis.set_yticks(range(len(sources)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    longest = max(source.share for source in sources)
    axis.set(xlabel="Share of the sum of squares of test scores (%)")
    axis.set(xlim=(0, 1.2 * 100 * longest + 8))  # room for the text behind the longest bar
    plain_numbers(axis.xaxis)
    finish(figure, None, f"Where the spread between runs comes from\n{judged}")
    return figure


def difference_plot(
    tests: Sequence[Comparison], contrasts: Sequence[Comparison], said: Score
) -> Figure | None:
    """Differences with 95% intervals: the best cell against the nearest others, and levels of each
    axis; None with one seed.
    """
    # Of each data set and model there is a best cell, and the tests of each begin with the nearest.
    firsts = list(dict.fromkeys(one.first for one in tests))
    each = max(1, 10 // max(1, len(firsts)))
    nearest = [one for first in firsts for one in [t for t in tests if t.first == first][:each]]
    every = (*nearest, *contrasts[:14])
    chosen = [one for one in every if not np.isnan(one.test.low)]
    if not chosen:
        return None

    figure, axis = new_figure(9.2, 0.34 * len(chosen) + 1.6)
    for place, one in enumerate(chosen):
        shown = one.adjusted < 0.05
        colour, filling = ("#0072B2", "#0072B2") if shown else (MUTED, PAPER)
        limits = [said.factor * limit for limit in one.limits]
        axis.plot(limits, [place, place], color=colour, lw=1.8, solid_capstyle="butt")
        middle = said.factor * one.test.difference
        axis.plot(middle, place, color=colour, marker="o", ms=6, mfc=filling)

    axis.axvline(0, color=INK, lw=1)
    names = [shortened(f"{one.axis}: {one.first}  −  {one.second}", 70) for one in chosen]
    axis.set_yticks(range(len(chosen)), names, fontsize=8.5)
    axis.set_ylim(len(chosen) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    unit = " (points)" if said.points else ""
    axis.set(xlabel=f"Difference of test {said.label}{unit}, same seeds")
    plain_numbers(axis.xaxis)
    detail = (
        "95% intervals, one at a time; filled blue: still below p = 0.05 when corrected for many "
        "comparisons (Holm)"
    )
    finish(figure, None, f"Paired differences\n{detail}")
    return figure


def _front(
    cells: Sequence[Cell], cost: Callable[[Cell], float | None], title: str, label: str
) -> Figure | None:
    """A panel for each data set and model where they differ, each with a front of its own."""
    known = [cell for cell in cells if cost(cell) is not None]
    if len(known) < 2:
        return None

    said, parts = measure(cells), facets(known)
    alone = len(parts) == 1
    size = dict(width=7.1, height=4.5) if alone else dict(width=6.2, height=4.6)
    figure, drawn = panels(len(parts), columns=2, sharex=False, sharey=False, **size)
    targets = list(dict.fromkeys(cell.targets for cell in known if cell.targets))
    fronts = [
        _draw_front(axis, words, alike, cost, said, targets)
        for axis, (words, alike) in zip(drawn, parts.items(), strict=True)
    ]
    for axis, words in zip(drawn, parts, strict=True):
        axis.set(xlabel=label, ylabel=said.axis, title=shortened(words, 60))

    formats = {
        cell.format: cell_look(cell, targets)[0]
        for cell in sorted(known, key=order)
        if cell.rank is not None
    }
    for format, colour in formats.items():
        drawn[0].scatter([], [], color=colour, marker="s", label=f"{format} base")
    for name in targets:
        marker = TARGET_MARKERS[targets.index(name) % len(TARGET_MARKERS)]
        words = shortened(name, 30)
        drawn[0].scatter([], [], facecolor="none", edgecolor=INK, marker=marker, label=words)
    finish(figure, drawn, f"Test {said.label} {title}")
    for axis, names in zip(drawn, fronts, strict=True):
        plain_numbers(axis.yaxis)
        name_points(axis, *names)
    return figure


def _draw_front(
    axis: Any,
    words: str,
    cells: Sequence[Cell],
    cost: Callable[[Cell], float | None],
    said: Score,
    targets: Sequence[str],
) -> tuple[list[tuple[str, float, float]], list[tuple[float, float]], list[tuple[float, float]]]:
    """Draws the cells and their front; what `name_points` needs: (names, points, the line)."""
    at = {id(cell): (cost(cell), said.factor * cell.value) for cell in cells}
    best = front(cells, cost)
    best_ids = set(map(id, best))
    on_front = [at[id(cell)] for cell in best]
    axis.plot(
        *zip(*on_front, strict=True),
        color=FAINT,
        lw=1.2,
        zorder=1,
        drawstyle="steps-post",
        label="Pareto front",
    )

    looks: dict[tuple[bool, str, str], list[tuple[float, float]]] = defaultdict(list)
    for cell in cells:
        looks[id(cell) in best_ids, *cell_look(cell, targets)].append(at[id(cell)])
    for (is_best, colour, marker), points in sorted(looks.items()):
        rim, width = (INK, 1.4) if is_best else (PAPER, 0.5)
        axis.scatter(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            edgecolor=rim,
            linewidth=width,
            s=58,
            zorder=3,
        )
    axis.margins(x=0.16, y=0.12)

    baselines = [cell for cell in cells if cell.rank is None and id(cell) not in best_ids]
    # What the panel's title says of all, a name need not say again.
    named = [
        (cell.name.replace(words, "").strip(), *at[id(cell)])
        for cell in [*best, *baselines][:_MOST_NAMES]
    ]
    return named, list(at.values()), on_front
