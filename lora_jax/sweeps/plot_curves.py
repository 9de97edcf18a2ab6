"""Curves of a report: the score against rank and any other axis, loss against steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lora_jax.core.extras import needs
from lora_jax.statistics.interval import over_seeds
from lora_jax.sweeps.cells import UNLIKE, Cell, axes, facets, levels, measure, order, shown
from lora_jax.sweeps.files import number, read_lines
from lora_jax.sweeps.plot_style import (
    COLOURS,
    INK,
    MARKERS,
    OTHER_COLOUR,
    PAPER,
    SERIES,
    TARGET_MARKERS,
    baseline_lines,
    baseline_look,
    finish,
    panels,
    plain_numbers,
    shortened,
)

with needs("report"):
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator


MOST_LINES = 8  # of a panel that a reader still follows
MOST_TICKS = 24  # levels of an axis that each have their tick; more numbers are a cloud of points
MOST_CURVES = 24  # cells whose loss curves are drawn
MOST_SEEDS = 5  # of a cell whose curves are averaged
_RANK_STYLES = ("-", "--", "-.", ":")


def rank_curve(cells: Sequence[Cell]) -> Figure | None:
    """Test score against rank: a panel for each target set, a line for each format, baselines
    across; None with one rank.
    """
    adapters = [cell for cell in cells if cell.rank is not None]
    ranks = sorted({cell.rank for cell in adapters})
    if len(ranks) < 2:
        return None

    said = measure(cells)
    shown_panels = list(dict.fromkeys(cell.targets for cell in adapters))
    lines = list(dict.fromkeys(_line_name(cell) for cell in sorted(adapters, key=order)))
    left_out = ""
    if len(lines) > MOST_LINES:
        lines, left_out = _best_lines(adapters), "; of each format, the variant with the best mean"
    figure, drawn = panels(len(shown_panels), width=4.2, height=3.7)
    for axis, targets in zip(drawn, shown_panels, strict=True):
        for index, line in enumerate(lines):
            points = sorted(
                (cell for cell in adapters if (cell.targets, _line_name(cell)) == (targets, line)),
                key=lambda cell: cell.rank,
            )
            # Equal ranks stand side by side, so that intervals and markers of the formats do not
            # hide each other.
            x = [cell.rank * 2 ** (0.09 * (index - (len(lines) - 1) / 2)) for cell in points]
            _with_intervals(axis, x, points, label=line, **_look(line, index))
        baseline_lines(axis, cells, said)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ranks, [str(rank) for rank in ranks])
        axis.minorticks_off()
        axis.set(xlabel="LoRA rank (log scale)", title=f"Targets: {shortened(targets, 46)}")
    drawn[0].set_ylabel(said.axis)
    plain_numbers(drawn[0].yaxis)
    finish(
        figure,
        drawn[0],
        f"Test {said.label} by LoRA rank and format of the frozen base\n{bars_say(adapters)}{left_out}",
        "base",
    )
    return figure


def axis_curves(cells: Sequence[Cell]) -> Figure | None:
    """Test score along every other axis (learning rate, block size, initialisation, ...), a
    panel each; None if there is none.

    A line for each data set and model where they differ, else for each format (or, with one format,
    for each target set): the mean over all cells that share the level.
    """
    adapters = [cell for cell in cells if cell.rank is not None]
    columns = axes(adapters)
    # Formats and targets have the rank's panels already; without ranks they are axes like the rest.
    plain = {
        name: column
        for name, column in columns.items()
        if name != "rank" and ("rank" not in columns or name not in ("format", "targets"))
    }
    if not plain:
        return None

    said = measure(cells)
    figure, drawn = panels(len(plain), width=4.2, height=3.6, sharex=False)
    for axis, (name, column) in zip(drawn, plain.items(), strict=True):
        lines = _lines_along(name, columns)
        steps = levels(column)
        x_of = _places(axis, name, steps)
        joined = "-" if _is_log(steps) else ":"

        for index, (line, places) in enumerate(lines.items()):
            scores: dict[Any, list[float]] = {level: [] for level in steps}
            for place in places:
                scores[column[place]].append(adapters[place].value)
            colour = SERIES[index % len(SERIES)] if line else INK
            axis.plot(
                [x_of[level] for level in steps if scores[level]],
                [said.factor * sum(one) / len(one) for one in scores.values() if one],
                color=colour,
                marker=TARGET_MARKERS[index % len(TARGET_MARKERS)],
                lw=1.6,
                ms=6,
                ls=joined if len(steps) <= MOST_TICKS else "",
                label=line or "all cells",
            )
    drawn[0].set_ylabel(said.axis)
    plain_numbers(drawn[0].yaxis)
    finish(
        figure, drawn, f"Test {said.label} along the other axes\nmean over all cells with the level"
    )
    return figure


def _lines_along(name: str, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[int]]:
    """{what a line along an axis is of: its cells by place}: each combination of data and model by
    itself, as a mean over those says nothing; {'': all} where there is one line.
    """
    chosen = [other for other in UNLIKE if other in columns and other != name]
    if not chosen and name not in ("format", "targets"):
        others = (other for other in ("format", "targets", "rank") if other != name)
        chosen = [other for other in others if other in columns][:1]
    rows = list(zip(*(columns[other] for other in chosen), strict=True))
    if not rows:
        return {"": list(range(len(columns[name])))}

    rank_of = [{level: n for n, level in enumerate(levels(columns[other]))} for other in chosen]
    at = lambda place: [ranks[x] for ranks, x in zip(rank_of, rows[place], strict=True)]
    found: dict[str, list[int]] = defaultdict(list)
    for place in sorted(range(len(rows)), key=at):
        words = zip(chosen, rows[place], strict=True)
        found[" ".join(f"{other} {shown(level)}" for other, level in words)].append(place)
    return dict(found)


def _is_log(steps: Sequence[Any]) -> bool:
    """Whether these levels stand at their values on a log scale: positive numbers do."""
    return all(
        isinstance(level, (int, float)) and not isinstance(level, bool) and level > 0
        for level in steps
    )


def _places(axis: Any, name: str, steps: Sequence[Any]) -> dict[Any, float]:
    """{level: where it stands}, with the ticks and the label of the axis set accordingly."""
    numeric = _is_log(steps)
    cloud = len(steps) > MOST_TICKS and all(isinstance(level, (int, float)) for level in steps)
    x_of = dict(zip(steps, steps if numeric or cloud else range(len(steps)), strict=True))
    words = [shown(level) for level in steps]
    axis.set_xlabel(f"{name[0].upper()}{name[1:]}{' (log scale)' if numeric else ''}")
    if cloud:
        axis.set_xscale("log" if numeric else "linear")
        return x_of

    if numeric:
        whole = all(float(level).is_integer() for level in steps)
        axis.set_xscale("log", base=2 if whole else 10)
    axis.set_xticks(list(x_of.values()), [shortened(text, 16) for text in words])
    axis.minorticks_off()
    if not numeric:
        axis.margins(x=0.15)
        axis.tick_params(axis="x", rotation=20 if max(map(len, words)) > 8 else 0)
    return x_of


def learning_curves(cells: Sequence[Cell]) -> Figure | None:
    """Loss against steps, mean over seeds: a panel for each format and target set, baselines in
    every panel of their data and model.
    """
    part = {id(cell): words for words, alike in facets(cells).items() for cell in alike}
    chosen, left_out = _drawable(cells, part)
    split, curves = _curves(chosen)
    if not curves:
        return None

    adapters = [cell for cell, _ in curves if cell.rank is not None]
    shown_panels = list(
        dict.fromkeys((part[id(cell)], cell.targets, cell.format) for cell in adapters)
    )
    # Data that only baselines were trained on.
    lone = dict.fromkeys(part[id(cell)] for cell, _ in curves)
    for words, *_ in shown_panels:
        lone.pop(words, None)
    shown_panels += [(words, None, "baselines") for words in lone]
    ranks = sorted({cell.rank for cell in adapters})
    columns = len({format for *_, format in shown_panels})
    figure, drawn = panels(len(shown_panels), width=3.5, height=2.9, columns=min(columns, 4))
    shades = matplotlib.colormaps["viridis"]
    for axis, (words, targets, format) in zip(drawn, shown_panels, strict=True):
        for cell, (steps, losses) in curves:
            if part[id(cell)] != words:
                continue
            if cell.rank is None:
                colour, dashes = baseline_look(cell.method)
                axis.plot(steps, losses, color=colour, ls=dashes, lw=1.3, label=cell.name)
            elif (cell.targets, cell.format) == (targets, format):
                place = ranks.index(cell.rank)
                shade = shades(0.85 * place / max(1, len(ranks) - 1))
                style = _RANK_STYLES[place % len(_RANK_STYLES)]
                label = f"rank {cell.rank} {cell.variant}".strip()
                axis.plot(steps, losses, color=shade, ls=style, lw=1.8, label=label)
        title = f"{format} base, {shortened(targets, 26)}" if targets else format
        axis.set_title("\n".join(filter(None, (shortened(words, 44), title))))
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_xlabel("Optimiser step")
        axis.label_outer()

    figure.supylabel("Loss", fontsize=10, x=0.012)
    plain_numbers(drawn[0].yaxis)
    smoothed = "training loss, running mean of 5 logged rows"
    kind = "validation loss" if split == "validation" else smoothed
    few = max(cell.seeds for cell in chosen) <= MOST_SEEDS
    seeds = "seeds" if few else f"the first {MOST_SEEDS} seeds"
    finish(figure, drawn, f"Learning curves: {kind}, mean over {seeds}{left_out}")
    return figure


def bars_say(cells: Sequence[Cell]) -> str:
    """What the bars are."""
    if any(cell.seeds > 1 for cell in cells):
        return "bars: 95% confidence interval of the mean over seeds (Student); dots: seeds"
    said, errors = measure(cells), [cell.standard_error for cell in cells]
    if not said.share:
        return "one seed: the spread over seeds is not known"
    error = said.number(sum(errors) / len(errors))
    return f"one seed; binomial standard error of the test set about {error} points"


def interval_of(cell: Cell) -> tuple[float, float]:
    """Distances, in the unit of the axis, from the cell's mean down and up to its 95% limits over
    seeds; 0 with one seed.
    """
    factor = measure([cell]).factor
    found = over_seeds([factor * value for value in cell.by_seed().values()])
    return (0.0, 0.0) if found.runs < 2 else (found.mean - found.low, found.high - found.mean)


def _with_intervals(axis: Any, x: Sequence[float], points: Sequence[Cell], **look: Any) -> None:
    bars = [interval_of(cell) for cell in points]
    several = any(low or high for low, high in bars)
    heights = [measure(points).factor * cell.value for cell in points]
    errors = list(zip(*bars, strict=True)) if several else None
    axis.errorbar(x, heights, yerr=errors, capsize=3, lw=1.6, ms=6.5, **look)
    for place, cell in zip(x, points, strict=True):
        values = [measure(points).factor * value for value in cell.by_seed().values()]
        if len(values) > 1:
            dots = dict(ms=3.5, mfc=PAPER, mec=look["color"], mew=0.9, zorder=4)
            axis.plot([place] * len(values), values, "o", **dots)


def _best_lines(adapters: Sequence[Cell]) -> list[str]:
    """The line of each format, of each data set and model, whose cells have the best mean."""
    scores: dict[Any, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for facet, cells in facets(adapters).items():
        for cell in sorted(cells, key=order):
            scores[facet, cell.format][_line_name(cell)].append(cell.merit)
    return [
        max(lines, key=lambda line: sum(lines[line]) / len(lines[line]))
        for lines in scores.values()
    ]


def _drawable(cells: Sequence[Cell], part: Mapping[int, str]) -> tuple[list[Cell], str]:
    """(cells, what is left out): of the variants of one rank, format and targets the best, in each
    `part` by the cell's `id`; and of those no more than a reader can follow.
    """
    best: dict[tuple[Any, ...], Cell] = {}
    for cell in cells:
        key = (part[id(cell)], cell.method, cell.format, cell.rank, cell.targets)
        if key not in best or cell.merit > best[key].merit:
            best[key] = cell
    ranked = sorted(best.values(), key=lambda cell: (cell.rank is not None, -cell.merit))
    chosen = sorted(ranked[:MOST_CURVES], key=order)
    if len(chosen) == len(cells):
        return chosen, ""
    cut = f", best {MOST_CURVES} cells" if len(best) > MOST_CURVES else ""
    return chosen, f"\nthe best variant of each cell{cut}"


def _curves(
    cells: Sequence[Cell],
) -> tuple[str, list[tuple[Cell, tuple[list[float], list[float]]]]]:
    """(split, curves): validation loss if every cell has at least three points of it, else the
    training loss.
    """
    rows = {
        run.run_id: read_lines(run.folder / "metrics.jsonl")[0]
        for cell in cells
        for run in cell.runs[:MOST_SEEDS]
    }
    for split, least, window in (("validation", 3, 1), ("train", 2, 5)):
        curves = []
        for cell in cells:
            points: dict[float, list[float]] = defaultdict(list)
            members = [run for run in cell.runs if run.run_id in rows]
            for row in (row for run in members for row in rows[run.run_id]):
                step, loss = number(row.get("step")), number(row.get("loss"))
                if row.get("split") == split and None not in (step, loss):
                    points[step].append(loss)
            # A step that some seeds lack would move the mean by itself.
            steps = sorted(step for step, losses in points.items() if len(losses) == len(members))
            losses = [sum(points[step]) / len(points[step]) for step in steps]
            if len(steps) >= least:
                curves.append((cell, (steps, _running_mean(losses, window))))
        if len(curves) == len(cells) or (split == "train" and curves):
            return split, curves
    return "train", []


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    starts = (max(0, end - window) for end in range(1, len(values) + 1))
    return [sum(values[start:end]) / (end - start) for end, start in enumerate(starts, start=1)]


def _line_name(cell: Cell) -> str:
    return f"{cell.format} {cell.variant}".strip()


def _look(line: str, index: int) -> dict[str, Any]:
    format, _, variant = line.partition(" ")
    markers = list(MARKERS.values())
    marker = MARKERS.get(format, "o") if not variant else markers[index % len(markers)]
    return {
        "color": COLOURS.get(format, OTHER_COLOUR),
        "marker": marker,
        "ls": "--" if variant and index % 2 else "-",
    }
