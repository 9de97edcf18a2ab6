"""The three pictures of a report: accuracy against rank, accuracy against bytes, loss against steps."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lora_jax.sweep.cells import Cell, order, pareto
from lora_jax.sweep.store import StoreError, read_metrics

# Okabe and Ito's palette: told apart with every common colour blindness, and in print.
_COLOURS = {"fp32": "#0072B2", "int8": "#E69F00", "nf4": "#009E73", "fp4": "#CC79A7", "int4": "#D55E00"}
_MARKERS = {"fp32": "o", "int8": "s", "nf4": "^", "fp4": "D", "int4": "v"}
_TARGET_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
_BASELINES = {
    "full": ("#000000", (0, (6, 3))), "head": ("#767676", (0, (1.5, 2))), "bitfit": ("#8c510a", (0, (4, 1))),
    "top_layers": ("#bf812d", (0, (4, 1, 1, 1))), "bottleneck": ("#01665e", (0, (4, 1))), "prefix_embedding": ("#762a83", (0, (1, 1))),
    "prefix_layers": ("#9970ab", (0, (3, 1, 1, 1))), "ia3": ("#35978f", (0, (2, 1))),
}  # fmt: skip
_RANK_STYLES = ("-", "--", "-.", ":")
_STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "legend.frameon": False, "figure.dpi": 110, "savefig.dpi": 160, "axes.titlesize": 10,
}  # fmt: skip


def make_folder(path: Path) -> None:
    """Makes the folder of a report.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"A report needs the folder {path}, but the system says: {error.strerror}. Choose another.") from error


def draw(cells: Sequence[Cell], out: Path, footnote: str) -> dict[str, str]:
    """{title: file name} of the pictures written into `out`; one that has nothing to show is left out."""
    pictures = {
        "Accuracy against rank": ("rank_curve.png", rank_curve),
        "Accuracy against memory": ("pareto.png", pareto_plot),
        "Learning curves": ("learning_curves.png", learning_curves),
    }
    written = {}
    with plt.rc_context(_STYLE):
        for title, (name, picture) in pictures.items():
            figure = picture(cells)
            if figure is not None:
                figure.text(0.01, 0.01, textwrap.fill(footnote, 130), fontsize=7.5, color="#555555", va="bottom")
                _save(figure, out / name)
                written[title] = name
    return written


def rank_curve(cells: Sequence[Cell]) -> Figure | None:
    """Test accuracy against rank: a panel for each target set, a line for each format, baselines across."""
    adapters = [cell for cell in cells if cell.rank is not None]
    if not adapters:
        return None
    panels = list(dict.fromkeys(cell.targets for cell in adapters))
    lines = list(dict.fromkeys(_line_name(cell) for cell in sorted(adapters, key=order)))
    ranks = sorted({cell.rank for cell in adapters})
    figure, axes = _grid(len(panels), width=4.2, height=3.7)
    for axis, targets in zip(axes, panels, strict=True):
        for index, line in enumerate(lines):
            points = [cell for cell in adapters if cell.targets == targets and _line_name(cell) == line]
            points.sort(key=lambda cell: cell.rank)
            # Equal ranks stand side by side, so that error bars and markers of the formats do not hide each other.
            x = [cell.rank * 2 ** (0.09 * (index - (len(lines) - 1) / 2)) for cell in points]
            y = [100 * cell.accuracy for cell in points]
            bars = [100 * cell.standard_error if cell.seeds > 1 else 0 for cell in points]
            look = _look(line, index)
            axis.errorbar(x, y, yerr=bars if any(bars) else None, capsize=3, lw=1.6, ms=6.5, label=line, **look)
        _baseline_lines(axis, cells, lambda cell: 100 * cell.accuracy)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ranks, [str(rank) for rank in ranks])
        axis.minorticks_off()
        axis.set(xlabel="LoRA rank (log scale)", title=f"Targets: {textwrap.shorten(str(targets), 46)}")
    axes[0].set_ylabel("Test accuracy (%)")
    bars = "bars: ± standard error over seeds" if any(cell.seeds > 1 for cell in adapters) else _one_seed(adapters)
    _finish(figure, axes[0], f"Test accuracy by LoRA rank and format of the frozen base\n{bars}", "base")
    return figure


def pareto_plot(cells: Sequence[Cell]) -> Figure | None:
    """Test accuracy against the bytes of base and adapter, the Pareto front joined and named."""
    sized = [cell for cell in cells if cell.stored_bytes is not None]
    if not sized:
        return None
    figure, axis = plt.subplots(figsize=(9, 5.4))
    targets = list(dict.fromkeys(cell.targets for cell in sized if cell.targets))
    front = pareto(sized)
    axis.plot(
        [cell.stored_bytes / 1e6 for cell in front], [100 * cell.accuracy for cell in front],
        color="#9a9a9a", lw=1.2, zorder=1, drawstyle="steps-post", label="Pareto front",
    )  # fmt: skip
    for cell in sized:
        colour, marker = _cell_look(cell, targets)
        axis.scatter(
            cell.stored_bytes / 1e6, 100 * cell.accuracy, s=58, color=colour, marker=marker, zorder=3,
            edgecolor="black" if cell in front else "white", linewidth=1.4 if cell in front else 0.5,
        )  # fmt: skip
    axis.margins(x=0.16, y=0.12)
    axis.set(xlabel="Base + adapter, as stored (MB = 10⁶ bytes)", ylabel="Test accuracy (%)")
    for cell in sorted(sized, key=order):
        if cell.rank is not None:
            axis.scatter([], [], color=_cell_look(cell, targets)[0], marker="s", label=f"{cell.format} base")
    for name in targets:
        marker = _TARGET_MARKERS[targets.index(name) % len(_TARGET_MARKERS)]
        axis.scatter([], [], facecolor="none", edgecolor="black", marker=marker, label=textwrap.shorten(name, 30))
    _finish(figure, axis, "Test accuracy against stored size\nblack rim: no smaller cell is as accurate", "")
    named = [*front, *(cell for cell in sized if cell.rank is None and cell not in front)]
    _label_points(axis, named, sized)
    return figure


def learning_curves(cells: Sequence[Cell]) -> Figure | None:
    """Loss against steps, mean over seeds: a panel for each format and target set, baselines in every panel."""
    split, curves = _curves(cells)
    if not curves:
        return None
    adapters = [cell for cell, _ in curves if cell.rank is not None]
    panels = list(dict.fromkeys((cell.targets, _line_name(cell)) for cell in adapters)) or [(None, "baselines")]
    ranks = sorted({cell.rank for cell in adapters})
    columns = max(1, len({line for _, line in panels}))
    figure, axes = _grid(len(panels), width=3.5, height=2.9, columns=min(columns, 4))
    shades = plt.get_cmap("viridis")
    for axis, (targets, line) in zip(axes, panels, strict=True):
        for cell, (steps, losses) in curves:
            if cell.rank is None:
                colour, dashes = _BASELINES[cell.method]
                axis.plot(steps, losses, color=colour, ls=dashes, lw=1.3, label=cell.name)
            elif (cell.targets, _line_name(cell)) == (targets, line):
                place = ranks.index(cell.rank)
                shade = shades(0.85 * place / max(1, len(ranks) - 1))
                style = _RANK_STYLES[place % len(_RANK_STYLES)]
                axis.plot(steps, losses, color=shade, ls=style, lw=1.8, label=f"rank {cell.rank}")
        axis.set_title(f"{line} base, {textwrap.shorten(str(targets), 26)}" if targets else line)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axis in axes:
        axis.set_xlabel("Optimiser step")
        axis.label_outer()
    figure.supylabel("Cross-entropy (nats)", fontsize=10, x=0.012)
    kind = "validation loss" if split == "validation" else "training loss, running mean of 5 logged rows"
    _finish(figure, axes[0], f"Learning curves: {kind}, mean over seeds", "")
    return figure


def _curves(cells: Sequence[Cell]) -> tuple[str, list[tuple[Cell, tuple[list[int], list[float]]]]]:
    """(split, curves): validation loss if every cell has at least three points of it, else the training loss."""
    rows = {run.run_id: read_metrics(run.folder / "metrics.jsonl").rows for cell in cells for run in cell.runs}
    for split, least, window in (("validation", 3, 1), ("train", 2, 5)):
        curves = []
        for cell in cells:
            points: dict[int, list[float]] = defaultdict(list)
            for row in (row for run in cell.runs for row in rows[run.run_id]):
                if row.get("split") == split and row.get("loss") is not None:
                    points[row["step"]].append(row["loss"])
            # A step that some seeds lack would move the mean by itself.
            steps = sorted(step for step, losses in points.items() if len(losses) == cell.seeds)
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
    markers = list(_MARKERS.values())
    marker = _MARKERS.get(format, "o") if not variant else markers[index % len(markers)]
    return {"color": _COLOURS.get(format, "#56B4E9"), "marker": marker, "ls": "--" if variant and index % 2 else "-"}


def _cell_look(cell: Cell, targets: Sequence[str]) -> tuple[str, str]:
    if cell.rank is None:
        return _BASELINES[cell.method][0], "*" if cell.method == "full" else "X"
    marker = _TARGET_MARKERS[targets.index(cell.targets) % len(_TARGET_MARKERS)]
    return _COLOURS.get(cell.format, "#56B4E9"), marker


def _baseline_lines(axis: Axes, cells: Iterable[Cell], height: Any) -> None:
    for cell in cells:
        if cell.rank is None:
            colour, dashes = _BASELINES[cell.method]
            label = {"full": "full fine-tuning", "head": "head only"}.get(cell.method, cell.method.replace("_", " "))
            axis.axhline(height(cell), color=colour, ls=dashes, lw=1.4, zorder=1, label=f"{label} {cell.variant}".strip())


def _one_seed(cells: Sequence[Cell]) -> str:
    errors = [100 * cell.standard_error for cell in cells]
    return f"one seed; binomial standard error of the test set about {sum(errors) / len(errors):.1f} points"


def _grid(panels: int, *, width: float, height: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    size = (width * columns + 1.9, height * rows + 0.9)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    flat = list(axes.flat)
    for axis in flat[panels:]:
        axis.set_visible(False)
    return figure, flat[:panels]


def _finish(figure: Figure, axis: Axes, title: str, legend_title: str) -> None:
    """Title above, one legend to the right of the data, room for the footnote below."""
    heading, _, detail = title.partition("\n")
    width, height = figure.get_size_inches()
    figure.text(0.01, 1 - 0.1 / height, heading, fontsize=12, weight="bold", va="top")
    figure.text(0.01, 1 - 0.36 / height, detail, fontsize=9, color="#444444", va="top")
    handles, labels = axis.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    right = 1 - 1.75 / width
    top = 1 - (0.62 if detail else 0.4) / height
    figure.tight_layout(rect=(0.01, 0.3 / height, right, top))
    figure.legend(once.values(), once.keys(), title=legend_title or None, loc="center left", bbox_to_anchor=(right, 0.5))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label_points(axis: Axes, named: Sequence[Cell], cells: Sequence[Cell]) -> None:
    """Names the points where there is room: the nearest of many places that hides no point and no other name."""
    figure = axis.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    at = {id(cell): axis.transData.transform((cell.stored_bytes / 1e6, 100 * cell.accuracy)) for cell in cells}
    reach = 6 * figure.dpi / 72
    taken = [(x - reach, y - reach, x + reach, y + reach) for x, y in at.values()]
    frame = axis.get_window_extent(renderer)
    for cell in named:
        x, y = at[id(cell)]
        text = axis.text(0, 0, cell.name, fontsize=8.5, va="center", zorder=5)
        box = text.get_window_extent(renderer)
        best, best_cost = None, math.inf
        for distance in range(9, 130, 6):
            for angle in range(0, 360, 15):
                dx, dy = distance * math.cos(math.radians(angle)) * 1.5, distance * math.sin(math.radians(angle))
                left = x + dx if dx >= 0 else x + dx - box.width
                place = (left - 3, y + dy - box.height / 2 - 2, left + box.width + 3, y + dy + box.height / 2 + 2)
                outside = place[0] < frame.x0 or place[2] > frame.x1 or place[1] < frame.y0 or place[3] > frame.y1
                hits = sum(_overlap(place, other) for other in taken)
                cost = 1e4 * outside + 1e3 * hits + math.hypot(dx, dy)
                if cost < best_cost:
                    best, best_cost = place, cost
        left, bottom, right, top = best
        taken.append(best)
        middle = (bottom + top) / 2
        text.set_position(axis.transData.inverted().transform((left + 3, middle)))
        nearest = (min(max(x, left), right), min(max(y, bottom), top))
        if math.hypot(nearest[0] - x, nearest[1] - y) > 1.6 * reach:
            ends = axis.transData.inverted().transform([(x, y), nearest])
            axis.plot(ends[:, 0], ends[:, 1], color="#9a9a9a", lw=0.7, zorder=2, scalex=False, scaley=False)


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise StoreError(f"A report must write {path}, but the system says: {error.strerror or error}.") from error
    finally:
        plt.close(figure)
