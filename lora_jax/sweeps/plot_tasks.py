"""The performance profiles of settings that ran on several tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_jax.core.extras import needs
from lora_jax.metrics.score import Score
from lora_jax.statistics.aggregate import performance_profile
from lora_jax.sweeps.over_tasks import OverTasks
from lora_jax.sweeps.plot_style import SERIES, finish, new_figure, plain_numbers, shortened

with needs("report"):
    from matplotlib.figure import Figure


def profiles(settings: Sequence[OverTasks], said: Score) -> Figure | None:
    """The share of runs above each score, on the mean of the tasks, for the settings with the best
    mean ranks; None unless several tasks were swept and scores are shares of right answers.
    """
    if not settings or not said.share:
        return None
    drawn = settings[: len(SERIES)]
    values = [value for one in drawn for task in one.scores for value in task]
    levels = np.unique([min(values) - 0.01, *values, max(values) + 0.01])
    figure, axis = new_figure(8, 4.2)
    for one, colour in zip(drawn, SERIES):
        shares = 100 * performance_profile(one.scores, levels)
        name = shortened(one.name, 40)
        # Above a level until the next score: the curve falls at the score itself.
        axis.step(said.factor * levels, shares, where="post", color=colour, lw=1.8, label=name)
    axis.set(xlabel=said.axis, ylabel="Runs above it (%)", ylim=(-2, 102))
    plain_numbers(axis.xaxis)
    detail = "share of runs that score higher, on the mean of the tasks: higher is better"
    finish(figure, [axis], f"Performance profiles over {len(drawn[0].scores)} tasks\n{detail}")
    return figure
