"""A worker's first lines, wherever it runs: it can be asked to stop while it imports the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lora_jax.training.interrupted import ended_by_signals


class Part(NamedTuple):
    """Process `number` of the `count` that are one worker on one mesh. They meet by a file of a
    `name` that no other worker, and no earlier try of this one, has; `host` is the machine's name
    to the others, by default its own.
    """

    number: int
    count: int
    name: str
    host: str | None = None


def begin(
    order: Mapping[str, Any], number: int, say: Callable[[str], None], part: Part | None = None
) -> int:
    """Works as worker `number` of the launch that `Launch.order` told, or takes part in it; the
    number of runs finished.

    SIGINT and SIGTERM end the process at once, with status 128 + their number, while something is
    imported, and else as `work` says.

    Raises:
        Interrupted, KeyboardInterrupt: a signal came; a run that was trained has a checkpoint.
    """
    with ended_by_signals():
        from lora_jax.sweeps.executors.work import Launch, work, work_together

        if part is None or part.count == 1:
            return work(Launch.of(order), number, say)
        return work_together(Launch.of(order), number, say, *part)
