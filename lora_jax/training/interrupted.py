"""Being asked to stop: the signals, and what training raises then; a file of its own, so that it is
had without importing JAX.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM, SIGINT) and did, with a checkpoint at `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"Stopped at step {step}; a checkpoint was written. The same command goes on from "
            "there."
        )
        self.step = step


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that work stops where nothing is lost; a second
    signal ends at once.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, _: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
