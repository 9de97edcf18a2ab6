"""Being asked to stop: the signals, and what training raises then. It imports no JAX."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


class Stopped(Exception):
    """A run was stopped by the judge of a sweep, with a checkpoint at `step`."""

    def __init__(self, step: int, score: dict[str, float]) -> None:
        super().__init__(
            f"Stopped at step {step} with validation loss {score['loss']:.4f}: others were better. "
            "A checkpoint was written."
        )
        self.step, self.score = step, score


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

    try:
        with _answering(stop):
            yield stopped
    finally:
        _asked = None
    for number in came:
        signal.raise_signal(number)


@contextmanager
def ended_by_signals() -> Iterator[list[int]]:
    """The signals that came while a command runs. SIGINT and SIGTERM raise KeyboardInterrupt, but
    end the process at once with status 128 + their number where an exception would be swallowed:
    while a module is imported (which packages try, and do without), and in callbacks of C code. A
    second one does so anywhere.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    told = sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1 or _is_importing(frame):
            _leave(number)
        raise KeyboardInterrupt

    def swallowed(what: Any) -> None:
        if what.exc_type is KeyboardInterrupt and came:
            _leave(came[-1])
        told(what)

    sys.unraisablehook = swallowed
    try:
        with _answering(stop):
            yield came
    finally:
        sys.unraisablehook = told


@contextmanager
def keeping_answers() -> Iterator[None]:
    """Inside, others may answer SIGINT and SIGTERM in their own way; afterwards they are answered
    as before.
    """
    kept = {}
    if threading.current_thread() is threading.main_thread():
        kept = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, before in kept.items():
            signal.signal(number, before)


@contextmanager
def _answering(handler: Any) -> Iterator[None]:
    old = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _leave(number: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # It may be in the midst of a write.
            stream.flush()
    os.write(2, b"lora-jax: stopped.\n")
    os._exit(128 + number)
