"""How commands print tables."""

from __future__ import annotations

from rich.console import Console, RenderableType

_PLAIN_WIDTH = 170  # columns of a file or a pipe, which has no width of its own


def print_table(table: RenderableType) -> None:
    """Prints to standard output, in full where that is no terminal."""
    console = Console()
    (console if console.is_terminal else Console(width=_PLAIN_WIDTH)).print(table)
