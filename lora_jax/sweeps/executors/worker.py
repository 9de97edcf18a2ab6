"""A worker's first lines, wherever it runs: it can be asked to stop while it imports the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lora_jax.training.interrupted import ended_by_signals


def begin(order: Mapping[str, Any], number: int, say: Callable[[str], None]) -> int:
    """Works as worker `number` of the launch that `Launch.order` told; the number of runs finished.

    SIGINT and SIGTERM end the process at once, with status 128 + their number, while something is
    imported, and else as `work` says.

    Raises:
        Interrupted, KeyboardInterrupt: a signal came; a run that was trained has a checkpoint.
    """
    with ended_by_signals():
        from lora_jax.sweeps.executors.work import Launch, work

        return work(Launch.of(order), number, say)
