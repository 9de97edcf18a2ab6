"""Maps of a report: heat maps over the grid, the score against memory and time, sources of spread,
differences with intervals.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from lora_jax.core.extras import needs
from lora_jax.statistics.variance import REST, Decomposition
from lora_jax.sweeps.cells import Cell, front, measure, order
from lora_jax.sweeps.comparisons import CellTest, LevelTest
from lora_jax.sweeps.levels import UNLIKE, axes
from lora_jax.sweeps.measure import Measure
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
)

with needs("report"):
    import matplotlib
    from matplotlib.figure import Figure


_MOST_BARS = 14


def heat_maps(cells: Sequence[Cell]) -> Figure | None:
    """Test score of rank × format, a panel for each target set, one colour scale; None without a grid
    of two axes, and where cells are of several data sets or models, whose mean says nothing.

    Cells that share all three are averaged.
    """
    adapters = [cell for cell in cells if cell.rank is not None]
    ranks = sorted({cell.rank for cell in adapters})
    formats = list(dict.fromkeys(cell.format for cell in sorted(adapters, key=order)))
    targets = list(dict.fromkeys(cell.targets for cell in adapters))
    if sum(len(axis) > 1 for axis in (ranks, formats, targets)) < 2 or UNLIKE.keys() & axes(
        adapters
    ):
        return None

    said = measure(cells)
    by_targets = len(formats) == 1  # then targets are the second axis, in one panel
    rows = targets if by_targets else formats
    shown_panels = [None] if by_targets else targets
    values = np.full((len(shown_panels), len(rows), len(ranks)), np.nan)
    for panel, chosen in enumerate(shown_panels):
        for row, name in enumerate(rows):
            for column, rank in enumerate(ranks):
                found = [
                    cell.value
                    for cell in adapters
                    if cell.rank == rank
                    and (
                        cell.targets == name
                        if by_targets
                        else (cell.format, cell.targets) == (name, chosen)
                    )
                ]
                if found:
                    values[panel, row, column] = sum(found) / len(found)
    low, high = np.nanmin(values), np.nanmax(values)
    figure, drawn = panels(
        len(shown_panels),
        width=max(2.6, 0.75 * len(ranks) + 1.2),
        height=max(1.9, 0.55 * len(rows) + 1.1),
    )
    shades = matplotlib.colormaps["viridis"]
    for axis, panel, chosen in zip(drawn, values, shown_panels, strict=True):
        image = axis.pcolormesh(
            panel, cmap=shades, vmin=low, vmax=high, edgecolors=PAPER, linewidth=1.5
        )
        for (row, column), value in np.ndenumerate(panel):
            if np.isnan(value):
                axis.text(column + 0.5, row + 0.5, "–", ha="center", va="center", color=MUTED)
                continue
            dark = (value - low) / (high - low) > 0.6 if high > low else False
            axis.text(
                column + 0.5,
                row + 0.5,
                said.number(value),
                ha="center",
                va="center",
                color=FIXED_DARK if dark else FIXED_LIGHT,
                fontsize=9,
            )
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        axis.set_xticks(np.arange(len(ranks)) + 0.5, [str(rank) for rank in ranks])
        axis.set_yticks(
            np.arange(len(rows)) + 0.5, [textwrap.shorten(str(row), 24) for row in rows]
        )
        axis.set(
            xlabel="LoRA rank",
            title="" if chosen is None else f"Targets: {textwrap.shorten(str(chosen), 30)}",
        )
    drawn[0].invert_yaxis()  # once: the panels share it
    drawn[0].set_ylabel("targets" if by_targets else "frozen base")
    several = len(adapters) > np.count_nonzero(~np.isnan(values))
    finish(
        figure,
        None,
        (
            f"{said.axis} over the grid\nmean over "
            f"seeds{' and over all other axes' if several else ''}; one colour scale"
        ),
    )
    width, height = figure.get_size_inches()
    figure.subplots_adjust(right=1 - 1.15 / width)
    box = drawn[-1].get_position()
    bar = figure.colorbar(
        image,
        cax=figure.add_axes(
            (
                1 - 0.95 / width,
                drawn[-1].get_position().y0,
                0.16 / width,
                drawn[0].get_position().y1 - box.y0,
            )
        ),
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.set_label(said.axis, fontsize=9)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{said.factor * value:g}")
    return figure


def memory_front(cells: Sequence[Cell]) -> Figure | None:
    """Test score against the bytes of base and adapter, the Pareto front joined and named."""
    return _front(
        cells, lambda cell: None if cell.stored_bytes is None else cell.stored_bytes / 1e6,
        "against stored size\nrimmed: no smaller cell is as good", "Base + adapter, as stored (MB = 10⁶ bytes)",
    )  # fmt: skip


def time_front(cells: Sequence[Cell]) -> Figure | None:
    """Test score against the time of a run, without its compilation, the Pareto front joined and
    named.
    """
    return _front(
        cells, training_seconds,
        (
            "against time of a run\nrimmed: no faster cell is as good; without "
            "compilation, mean over seeds"
        ),
        "Time of a run without compilation (s)",
    )  # fmt: skip


def training_seconds(cell: Cell) -> float | None:
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
    figure = new_figure(8, 0.36 * len(sources) + 1.5)
    axis = figure.subplots()
    for place, source in enumerate(sources):
        chance = source.name == REST or not source.p < 0.05
        axis.barh(place, 100 * source.share, height=0.68, color=FAINT if chance else "#0072B2")
        mark = (
            ""
            if source.name == REST or np.isnan(source.p)
            else f"   p = {source.p:.2g}"
            if source.p >= 1e-4
            else "   p < 0.0001"
        )
        axis.text(
            100 * source.share + 0.8,
            place,
            f"{100 * source.share:.1f}%{mark}",
            va="center",
            fontsize=8.5,
        )
    axis.set_yticks(range(len(sources)), [_source_name(source.name, table) for source in sources])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(
        xlabel="Share of the sum of squares of test scores (%)",
        xlim=(0, 1.2 * 100 * max(source.share for source in sources) + 8),
    )
    plain_numbers(axis.xaxis)
    judged = (
        "blue: more than chance explains (F test, p < 0.05, not corrected)"
        if table.replicated
        else "one seed a setting: no source can be told from chance"
    )
    finish(figure, None, f"Where the spread between runs comes from\n{judged}")
    return figure


def difference_plot(
    tests: Sequence[CellTest], contrasts: Sequence[LevelTest], said: Measure
) -> Figure | None:
    """Differences with 95% intervals: the best cell against the nearest others, and levels of each
    axis; None with one seed.
    """
    chosen = [
        (f"{one.best.name}  −  {one.other.name}", one.test, one.adjusted) for one in tests[:10]
    ]
    chosen += [
        (f"{one.axis}: {one.first}  −  {one.second}", one.test, one.adjusted)
        for one in contrasts[:14]
    ]
    chosen = [one for one in chosen if not np.isnan(one[1].low)]
    if not chosen:
        return None

    figure = new_figure(9.2, 0.34 * len(chosen) + 1.6)
    axis = figure.subplots()
    for place, (_, test, adjusted) in enumerate(chosen):
        colour = "#0072B2" if adjusted < 0.05 else MUTED
        axis.plot(
            [said.factor * test.low, said.factor * test.high],
            [place, place],
            color=colour,
            lw=1.8,
            solid_capstyle="butt",
        )
        axis.plot(
            said.factor * test.difference,
            place,
            color=colour,
            marker="o",
            ms=6,
            mfc=colour if adjusted < 0.05 else PAPER,
        )
    axis.axvline(0, color=INK, lw=1)
    axis.set_yticks(
        range(len(chosen)), [textwrap.shorten(name, 70) for name, *_ in chosen], fontsize=8.5
    )
    axis.set_ylim(len(chosen) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    unit = " (points)" if said.points else ""
    axis.set(xlabel=f"Difference of test {said.label}{unit}, same seeds")
    plain_numbers(axis.xaxis)
    finish(
        figure,
        None,
        (
            "Paired differences\n95% intervals, one at a time; filled blue: still below p = 0.05 "
            "when corrected for many comparisons (Holm)"
        ),
    )
    return figure


def _front(
    cells: Sequence[Cell], cost: Callable[[Cell], float | None], title: str, label: str
) -> Figure | None:
    known = [cell for cell in cells if cost(cell) is not None]
    if len(known) < 2:
        return None

    said = measure(cells)
    height = lambda cell: said.factor * cell.value
    figure = new_figure(9, 5.4)
    axis = figure.subplots()
    targets = list(dict.fromkeys(cell.targets for cell in known if cell.targets))
    best = front(known, cost)
    axis.plot([cost(cell) for cell in best], [height(cell) for cell in best], color=FAINT, lw=1.2, zorder=1, drawstyle="steps-post", label="Pareto front")  # fmt: skip
    on_front = set(map(id, best))
    looks: dict[tuple[bool, str, str], list[tuple[float, float]]] = defaultdict(list)
    for cell in known:
        looks[id(cell) in on_front, *cell_look(cell, targets)].append((cost(cell), height(cell)))
    for (is_best, colour, marker), points in sorted(looks.items()):
        rim, width = (INK, 1.4) if is_best else (PAPER, 0.5)
        axis.scatter(
            *zip(*points),
            s=58,
            color=colour,
            marker=marker,
            zorder=3,
            edgecolor=rim,
            linewidth=width,
        )
    axis.margins(x=0.16, y=0.12)
    axis.set(xlabel=label, ylabel=said.axis)
    formats = {
        cell.format: cell_look(cell, targets)[0]
        for cell in sorted(known, key=order)
        if cell.rank is not None
    }
    for format, colour in formats.items():
        axis.scatter([], [], color=colour, marker="s", label=f"{format} base")
    for name in targets:
        marker = TARGET_MARKERS[targets.index(name) % len(TARGET_MARKERS)]
        axis.scatter(
            [], [], facecolor="none", edgecolor=INK, marker=marker, label=textwrap.shorten(name, 30)
        )
    finish(figure, axis, f"{said.title} {title}")
    plain_numbers(axis.yaxis)
    named = [*best, *(cell for cell in known if cell.rank is None and id(cell) not in on_front)][
        :12
    ]
    at = {id(cell): (cost(cell), height(cell)) for cell in known}
    name_points(
        axis,
        [(cell.name, *at[id(cell)]) for cell in named],
        list(at.values()),
        [at[id(cell)] for cell in best],
    )
    return figure


def _source_name(name: str, table: Decomposition) -> str:
    if name != REST:
        return name
    return (
        "rest: luck of the seed in a setting" if table.replicated else "rest: three axes and more"
    )
