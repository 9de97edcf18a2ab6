"""What a person sees while a large model is read: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

_PATIENCE = 2.0  # seconds after which a person wants to know how long it takes


@contextmanager
def reading_shown(*, quiet: bool = False) -> Iterator[None]:
    """While it is open, reading that takes longer than two seconds is shown on standard error if that
    is a terminal: the GB read, those of all files, and the time left.
    """
    bar = None if quiet or not sys.stderr.isatty() else _ReadingBar()
    token = _open.set(bar)
    try:
        yield
    finally:
        _open.reset(token)
        if bar is not None:
            bar.stop()


def note_read(size: int, total: int, what: str) -> None:
    """Says that so many bytes more were read, of all those of the files of `what`."""
    bar = _open.get()
    if bar is not None:
        bar.note(size, total, what)


class _ReadingBar:
    def __init__(self) -> None:
        columns = (
            TextColumn("reading {task.description}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._began = time.monotonic()
        self._tasks: dict[str, int] = {}

    def note(self, size: int, total: int, what: str) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        known = self._tasks[what]
        self._progress.advance(known, size)
        if self._progress.tasks[known].finished:
            # All is read; what comes now, such as training, has a bar of its own.
            self.stop()
        elif not self._progress.live.is_started and time.monotonic() - self._began > _PATIENCE:
            self._progress.start()

    def stop(self) -> None:
        """Takes the bar off the terminal."""
        self._progress.stop()


_open: ContextVar[_ReadingBar | None] = ContextVar("reading_bar", default=None)
