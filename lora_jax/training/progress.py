"""What a person sees while training runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_SECONDS = 30.0


class TrainingBar:
    """A progress bar of training steps with loss, tokens a second and time left, on standard
    error.
    """

    def __init__(self, title: str, total_steps: int, done: int = 0, *, quiet: bool = False) -> None:
        self._title, self._total, self._quiet = title, total_steps, quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._last_line = time.monotonic()
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(),
        )  # fmt: skip
        self._progress = Progress(
            *columns, console=Console(stderr=True), transient=True, disable=not self._terminal
        )
        self._task: TaskID = self._progress.add_task(
            title, total=total_steps, completed=done, news=""
        )

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, step: int, loss: float, tokens_per_second: float | None) -> None:
        """Shows how far training is."""
        speed = "" if tokens_per_second is None else f"{tokens_per_second:,.0f} tok/s"
        self._progress.update(self._task, completed=step, news=f"loss {loss:.4f} {speed}")
        if self._terminal or self._quiet or time.monotonic() - self._last_line < _LINE_SECONDS:
            return
        self._last_line = time.monotonic()
        said = (f"{self._title}: step {step} of {self._total}", f"loss {loss:.4f}", speed)
        print(", ".join(filter(None, said)), file=sys.stderr, flush=True)
