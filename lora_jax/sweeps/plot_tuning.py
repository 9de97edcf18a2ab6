"""The curves of a tuned sweep: validation loss over the tuned setting, with what was chosen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lora_jax.core.extras import needs
from lora_jax.sweeps.cells import Cell, shown, word_of
from lora_jax.sweeps.plot_style import (
    FAINT,
    INK,
    SERIES,
    TARGET_MARKERS,
    baseline_look,
    finish,
    panels,
    plain_numbers,
    shortened,
)

with needs("report"):
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator


_MOST_TICKS = 6


def tuning_curves(cells: Sequence[Cell]) -> Figure | None:
    """Mean validation loss over the tuned setting: a panel for each format and target set with a
    line for each cell, and one for the baselines; None if nothing was tuned.
    """
    parts: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.curve is not None and cell.curve.best is not None:
            title = (
                f"{cell.format} base, {shortened(cell.targets, 26)}" if cell.rank else "baselines"
            )
            parts[title].append(cell)
    if not parts:
        return None

    # Baselines last: their values and losses are elsewhere.
    titles = sorted(parts, key=lambda title: title == "baselines")
    names = list(dict.fromkeys(_name(cell) for title in titles for cell in parts[title]))
    figure, drawn = panels(len(titles), width=3.6, height=3.0, sharex=False, sharey=False)
    for axis, title in zip(drawn, titles, strict=True):
        for cell in parts[title]:
            _curve(axis, cell, names.index(_name(cell)))
        _scale(axis, parts[title])
        axis.set_title(title)
    cut = _same_height(
        [axis for axis, title in zip(drawn, titles, strict=True) if title != "baselines"],
        [cell.curve.losses[cell.curve.best] for title in titles for cell in parts[title]],
    )

    figure.supylabel("Validation loss", fontsize=10, x=0.012)
    detail = "mean over the seeds of tuning; ringed: chosen; x: a run diverged or failed"
    finish(figure, drawn, f"What was tuned, and chosen for each setting\n{detail}{cut}")
    return figure


def _same_height(axes: Sequence[Any], best: Sequence[float]) -> str:
    """Gives the axes one scale, up to twice the worst of the best losses: one value that nearly
    diverges would press all others flat. What is cut off, in words.
    """
    limits = [limit for axis in axes for limit in axis.get_ylim()]
    top = min(max(limits, default=0.0), 2 * max(best))
    for axis in axes:
        axis.set_ylim(min(limits), top)
    return f"; losses above {top:.2g} are cut off" if limits and top < max(limits) else ""


def _name(cell: Cell) -> str:
    return cell.name if cell.rank is None else f"rank {cell.rank} {cell.variant}".strip()


def _curve(axis: Any, cell: Cell, place: int) -> None:
    curve = cell.curve
    known = [(value, curve.losses[value]) for value in curve.values]
    points = [(value, loss) for value, loss in known if loss is not None]
    colour, dashes = SERIES[place % len(SERIES)], "-"
    if cell.rank is None:
        colour, dashes = baseline_look(cell.method)
    axis.plot(
        *zip(*points, strict=True), color=colour, ls=dashes, lw=1.6, ms=5,
        marker=TARGET_MARKERS[place % len(TARGET_MARKERS)], label=_name(cell),
    )  # fmt: skip
    ring = dict(ms=11, mfc="none", mec=INK, mew=1.4, clip_on=False)
    axis.plot([curve.best], [curve.losses[curve.best]], "o", **ring)
    for value in (value for value, loss in known if loss is None):
        top = axis.get_xaxis_transform()
        axis.plot([value], [0.96], "x", color=colour, ms=7, transform=top)
        axis.axvline(value, color=FAINT, lw=0.8, ls=":")


def _scale(axis: Any, cells: Sequence[Cell]) -> None:
    """The values as they are, on a log scale, with a tick each where there are few."""
    values = sorted({value for cell in cells for value in cell.curve.values})
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    if len(values) <= _MOST_TICKS:
        axis.set_xticks(values, list(map(shown, values)), rotation=30)
    named = " or ".join(dict.fromkeys(word_of(cell.curve.setting) for cell in cells))
    axis.set_xlabel(f"{named.capitalize()} (log scale)")
    plain_numbers(axis.yaxis)
