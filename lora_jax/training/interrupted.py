"""Being asked to stop: the signals, and what training raises then. It imports no JAX."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM, SIGINT) and did, with a checkpoint at `step`; at step 0
    there was nothing to keep yet, and None is between two runs.
    """

    def __init__(self, step: int | None) -> None:
        where = {None: "between two runs", 0: "before the first step"}.get(
            step, f"at step {step}; a checkpoint was written"
        )
        super().__init__(f"Stopped {where}. The same command goes on from there.")
        self.step = step


_asked: threading.Event | None = None  # of this process, while somebody waits for it


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that work stops where nothing is lost; a second
    signal ends at once.

    Within another `stop_signals` it is that one's event: a signal that comes when the inner work is
    done is the outer's to see. One that nobody has answered with an exception is sent again at the
    end, to whoever was asked before.
    """
    global _asked
    if _asked is not None or threading.current_thread() is not threading.main_thread():
        yield _asked or threading.Event()
        return
    _asked = stopped = threading.Event()
    came: list[int] = []

    def stop(number: int, _: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        came.append(number)
        stopped.set()

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        _asked = None
        for number, handler in old.items():
            signal.signal(number, handler)
    for number in came:
        signal.raise_signal(number)
