"""The C library's heap, on Linux; imports nothing else, so that a program can set it up first."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable


def release_freed_memory() -> None:
    """Gives freed memory back to the system, so that the peak of one run is not the next one's."""
    malloc_trim = glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where that is not glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
