"""How every picture of a report looks: colours, panels, legends, names beside points, and its two
files, PNG and SVG.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.core.extras import needs
from lora_jax.metrics.score import Score
from lora_jax.sweeps.cells import Cell
from lora_jax.sweeps.files import disk

with needs("report"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter
    from PIL import Image


# Okabe and Ito's palette: told apart with every common colour blindness, and in print.
COLOURS = {
    "fp32": "#0072B2",
    "int8": "#E69F00",
    "nf4": "#009E73",
    "fp4": "#CC79A7",
    "int4": "#D55E00",
}
OTHER_COLOUR = "#56B4E9"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = {"fp32": "o", "int8": "s", "nf4": "^", "fp4": "D", "int4": "v"}
TARGET_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
BASELINES = {
    "full": ("#000000", (0, (6, 3))), "head": ("#767676", (0, (1.5, 2))), "bitfit": ("#8c510a", (0, (4, 1))),
    "top_layers": ("#bf812d", (0, (4, 1, 1, 1))), "bottleneck": ("#01665e", (0, (4, 1))), "prefix_embedding": ("#762a83", (0, (1, 1))),
    "prefix_layers": ("#9970ab", (0, (3, 1, 1, 1))), "ia3": ("#35978f", (0, (2, 1))),
}  # fmt: skip
INK, MUTED, FAINT, GRID, PAPER = "#000000", "#555555", "#9a9a9a", "#e6e6e6", "#ffffff"
# Text on a coloured ground, the same in light and dark pages.
FIXED_DARK, FIXED_LIGHT = "#010101", "#fefefe"
STYLE: dict[str, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID,
    "axes.axisbelow": True, "legend.frameon": False, "figure.dpi": 100, "savefig.dpi": 120, "axes.titlesize": 10,
    "font.family": ["DejaVu Sans"], "text.parse_math": False,  # names may hold dollar signs
     "svg.fonttype": "none", "svg.hashsalt": "lora-jax",
}  # fmt: skip
_THEMED = {INK: "--ink", MUTED: "--muted", FAINT: "--faint", GRID: "--grid", PAPER: "--paper"}


def new_figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """A figure of this size in inches with its axis, or a `grid` of them. No window and no notebook
    owns it: pyplot's state stays the user's.
    """
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def panels(
    count: int, *, width: float, height: float, columns: int = 3, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes of this size in inches, and room for a legend at the right."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    grid = dict(nrows=rows, ncols=columns, squeeze=False, sharex=True, sharey=True) | shared
    figure, axes = new_figure(width * columns + 1.9, height * rows + 0.9, **grid)
    flat = list(axes.flat)
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]


def finish(
    figure: Figure, axis: Axes | Sequence[Axes] | None, title: str, legend_title: str = ""
) -> None:
    """Title above (the second line smaller), the legend of the axes to the right, as wide as it
    needs; room for a footnote below.
    """
    heading, _, detail = title.partition("\n")
    width, height = figure.get_size_inches()
    room = 0.1
    legend = None
    if axis is not None:
        axes = [axis] if isinstance(axis, Axes) else axis
        pairs = [
            pair for one in axes for pair in zip(*one.get_legend_handles_labels(), strict=True)
        ]
        once = {label: handle for handle, label in pairs}
        legend = figure.legend(once.values(), once.keys(), title=legend_title or None)
        room = legend.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi + 0.1
        width = max(width, width - 1.9 + room)
        figure.set_size_inches(width, height)

    right = 1 - room / width
    if legend is not None:
        legend.set(loc="center left", bbox_to_anchor=(right, 0.5))
    figure.text(0.08 / width, 1 - 0.1 / height, heading, fontsize=12, weight="bold", va="top")
    figure.text(0.08 / width, 1 - 0.36 / height, detail, fontsize=9, color=MUTED, va="top")
    top = 1 - (0.47 + 0.15 * (1 + detail.count("\n")) if detail else 0.4) / height
    figure.tight_layout(rect=(0.01, 0.3 / height, right, top))


def shortened(text: object, width: int) -> str:
    """The text, or its ends: regexes of targets have no blanks to be cut at, and often one
    beginning.
    """
    whole = str(text)
    half = width // 2
    return whole if len(whole) <= width else f"{whole[: half - 1]}…{whole[half - width :]}"


def plain_numbers(axis: Any) -> None:
    """Tick labels without trailing zeros."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def baseline_look(method: str) -> tuple[str, Any]:
    """(colour, dashes) of a baseline; of one that another version trained, too."""
    return BASELINES.get(method, (MUTED, (0, (5, 1))))


def cell_look(cell: Cell, targets: Sequence[str]) -> tuple[str, str]:
    """(colour, marker) of a cell: colour is the format, marker the targets."""
    if cell.rank is None:
        return baseline_look(cell.method)[0], "*" if cell.method == "full" else "X"
    marker = TARGET_MARKERS[targets.index(cell.targets) % len(TARGET_MARKERS)]
    return COLOURS.get(cell.format, OTHER_COLOUR), marker


def baseline_lines(axis: Axes, cells: Iterable[Cell], said: Score) -> None:
    """A line across for each baseline among the cells; one far outside of what is drawn is only
    named, so that the rest stays readable.
    """
    low, high = axis.get_ylim()
    room = 0.75 * (high - low)
    words = {"full": "full fine-tuning", "head": "head only"}
    for cell in (cell for cell in cells if cell.rank is None):
        colour, dashes = baseline_look(cell.method)
        look = dict(color=colour, ls=dashes, lw=1.4)
        name = words.get(cell.method, cell.method.replace("_", " "))
        label = f"{name} {cell.variant}".strip()
        value = said.factor * cell.value
        if low - room <= value <= high + room:
            axis.axhline(value, zorder=1, label=label, **look)
        else:
            where = "below" if value < low else "above"
            axis.plot([], [], label=f"{label}: {said.number(cell.value)} ({where})", **look)


# Where a name may stand, as steps from its point: rings of 24 places, wider than they are high.
_AROUND = np.array(
    [
        (1.5 * distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle)))
        for distance in range(9, 150, 6)
        for angle in range(0, 360, 15)
    ]
)


def name_points(
    axis: Axes,
    named: Sequence[tuple[str, float, float]],
    points: Sequence[tuple[float, float]],
    line: Sequence[tuple[float, float]],
) -> None:
    """Names points where there is room: the nearest of many places that hides no point, no other
    name and nothing of the step line.
    """
    figure = axis.figure
    renderer = figure.canvas.get_renderer()
    axis.viewLim  # noqa: B018 - reading it settles the limits, which places depend on
    reach = 6 * figure.dpi / 72
    taken = [
        (x - reach, y - reach, x + reach, y + reach)
        for x, y in (axis.transData.transform(point) for point in points)
    ]

    taken += _boxes_along(axis.transData.transform(line)) if len(line) else []
    taken_at = np.array(taken)
    frame = axis.get_window_extent(renderer)
    for name, *where in named:
        x, y = axis.transData.transform(where)
        text = axis.text(0, 0, name, fontsize=8.5, va="center", zorder=5)
        box = text.get_window_extent(renderer)

        left = np.where(_AROUND[:, 0] >= 0, x + _AROUND[:, 0], x + _AROUND[:, 0] - box.width)
        bottom = y + _AROUND[:, 1] - box.height / 2
        places = np.stack(
            [left - 3, bottom - 2, left + box.width + 3, bottom + box.height + 2], axis=1
        )
        outside = (places[:, :2] < (frame.x0, frame.y0)).any(1) | (
            places[:, 2:] > (frame.x1, frame.y1)
        ).any(1)
        meets = (places[:, None, :2] < taken_at[None, :, 2:]).all(2) & (
            taken_at[None, :, :2] < places[:, None, 2:]
        ).all(2)

        cost = 1e4 * outside + 1e3 * meets.sum(1) + np.hypot(*_AROUND.T)
        best = places[cost.argmin()]
        left, bottom, right, top = best
        taken_at = np.vstack([taken_at, best])
        middle = (bottom + top) / 2
        text.set_position(axis.transData.inverted().transform((left + 3, middle)))

        nearest = (min(max(x, left), right), min(max(y, bottom), top))
        if math.hypot(nearest[0] - x, nearest[1] - y) > 1.6 * reach:
            ends = axis.transData.inverted().transform([(x, y), nearest])
            axis.plot(
                ends[:, 0], ends[:, 1], color=FAINT, lw=0.7, zorder=2, scalex=False, scaley=False
            )


def save_png(figure: Figure, path: Path) -> None:
    """Writes the picture.

    Raises:
        StoreError: the file cannot be written.
    """
    # Not figure.savefig, which draws everything twice: once to settle a layout that is settled here
    # already.
    figure.set_dpi(matplotlib.rcParams["savefig.dpi"])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    with disk(path):
        image.save(path, compress_level=3)


def svg_text(figure: Figure, label: str) -> str:
    """The picture as an <svg> element to stand in a page: its ink, grid and paper are the page's
    CSS variables, so it follows its theme.
    """
    buffer = io.StringIO()
    grounds = [
        ground
        for ground in (figure.patch, *(axis.patch for axis in figure.axes))
        if ground.get_visible()
    ]
    for ground in grounds:
        ground.set_visible(False)
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    for ground in grounds:
        ground.set_visible(True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    for colour, variable in _THEMED.items():
        text = re.sub(rf"(fill|stroke): {colour}\b", rf"\1: var({variable})", text)
    width, height = (72 * inches for inches in figure.get_size_inches())
    # As wide as the page where letters stay in proportion to its text; on a telephone the figure
    # scrolls, as letters of a picture that shrinks cannot be read.
    limits = f"max-width:{1.6 * width:.0f}px;min-width:{width:.0f}px"
    opening = (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}" style="{limits}" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    # Ids are per picture: two pictures of one page must not share a clip path.
    mark = re.sub(r"[^a-z]+", "-", label.lower())
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{mark}-", text)
    return opening + text[text.index(">") + 1 :]


def _boxes_along(corners: Any) -> list[tuple[float, float, float, float]]:
    """Thin boxes along a line that goes right, then up, from point to point."""
    boxes = []
    for (x, y), (right, top) in itertools.pairwise(corners):
        boxes += [(x, y - 2, right, y + 2), (right - 2, min(y, top), right + 2, max(y, top))]
    return boxes
