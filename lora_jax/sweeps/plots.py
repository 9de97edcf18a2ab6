"""The pictures of a report, by title: which there are, and drawing each once for both of its
files.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_jax.core.extras import needs
from lora_jax.sweeps.cells import Cell, measure
from lora_jax.sweeps.findings import Findings, findings_of
from lora_jax.sweeps.over_tasks import over_tasks
from lora_jax.sweeps.plot_curves import axis_curves, learning_curves, rank_curve
from lora_jax.sweeps.plot_maps import (
    difference_plot,
    heat_maps,
    memory_front,
    spread_bars,
    time_front,
)
from lora_jax.sweeps.plot_style import MUTED, STYLE, save_png, svg_text
from lora_jax.sweeps.plot_tasks import profiles
from lora_jax.sweeps.plot_tuning import tuning_curves

with needs("report"):
    import matplotlib
    from matplotlib.figure import Figure

# {} is the metric's name; the files are called alike whatever it is.
_PICTURES: dict[str, tuple[str, Callable[[Sequence[Cell], Findings], Figure | None]]] = {
    "{} over the grid": ("heat_maps", lambda cells, found: heat_maps(cells)),
    "{} against rank": ("rank_curve", lambda cells, found: rank_curve(cells)),
    "{} along the other axes": ("axis_curves", lambda cells, found: axis_curves(cells)),
    "{} against memory": ("pareto", lambda cells, found: memory_front(cells)),
    "{} against time": ("pareto_time", lambda cells, found: time_front(cells)),
    "Where the spread comes from": ("spread", lambda cells, found: spread_bars(found.spread)),
    "Paired differences": (
        "differences",
        lambda cells, found: difference_plot(
            found.against_best, found.between_levels, measure(cells)
        ),
    ),
    "{} profiles over all tasks": (
        "profiles",
        lambda cells, found: profiles(over_tasks(cells), measure(cells)),
    ),
    "What was tuned": ("tuning", lambda cells, found: tuning_curves(cells)),
    "Learning curves": ("learning_curves", lambda cells, found: learning_curves(cells)),
}


def figure(name: str, cells: Sequence[Cell], found: Findings | None = None) -> Figure | None:
    """One picture of a report, to look at or to change; None if these cells have nothing to show in
    it.

    Raises:
        ValueError: there is no such picture.
    """
    pictures = dict(_PICTURES.values())
    if name not in pictures:
        raise ValueError(f"A picture is one of {', '.join(pictures)}, got {name!r}.")
    with matplotlib.rc_context(STYLE):
        return pictures[name](cells, findings_of(cells) if found is None else found)


def draw(
    cells: Sequence[Cell], found: Findings, out: Path, footnote: str
) -> dict[str, tuple[str, str]]:
    """{title: (name of the PNG file written into `out`, <svg> element)}; a picture that has nothing
    to show is left out.
    """
    written = {}
    with matplotlib.rc_context(STYLE):
        for words, (name, picture) in _PICTURES.items():
            drawn = picture(cells, found)
            if drawn is None:
                continue

            # Without its unit.
            metric = measure(cells).label.partition(" (")[0]
            title = words.format(f"{metric[0].upper()}{metric[1:]}")
            svg = svg_text(drawn, title)
            width, height = drawn.get_size_inches()
            drawn.text(
                0.08 / width,
                0.06 / height,
                textwrap.fill(footnote, int(13.5 * width)),
                fontsize=7.5,
                color=MUTED,
                va="bottom",
            )
            save_png(drawn, out / f"{name}.png")
            written[title] = (f"{name}.png", svg)
    return written
