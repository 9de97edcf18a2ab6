"""What the library says once: that something which was asked for cannot be had here, and why."""

from __future__ import annotations

import functools
import sys


@functools.cache
def say_once(message: str) -> None:
    """Prints a message to standard error the first time that it comes in this process."""
    print(f"lora_jax: {message}", file=sys.stderr)
