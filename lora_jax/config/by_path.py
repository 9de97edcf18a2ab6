"""Values that single weights have instead of the others' value, in one text:
'layers_0/mlp/up/kernel: 16, layers_5/.*: 2', or with a name for tables, 'NAME=PATTERN: VALUE, ...'.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from lora_jax.config.limits import Limit, split_name


def read_by_path(text: str) -> tuple[tuple[str, str], ...]:
    """(regex on whole paths, value) of each exception, in order: the first that matches counts.

    Raises:
        ValueError: it is no such text.
    """
    found = []
    # A comma with no space behind it is a regex's.
    for part in re.split(r",\s+", split_name(text)[1]):
        pattern, colon, value = (piece.strip() for piece in part.rpartition(":"))
        if not part.strip():
            continue
        if not (colon and pattern and value):
            raise ValueError(f"an exception reads 'PATTERN: VALUE', got {part.strip()!r}")
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        found.append((pattern, value))
    return tuple(found)


def write_by_path(exceptions: tuple[tuple[str, str], ...]) -> str:
    """The text of exceptions, in its one spelling."""
    return ", ".join(f"{pattern}: {value}" for pattern, value in exceptions)


def shown_by_path(text: str) -> str:
    """What a table calls the exceptions: their name and what tells apart two of one name, or the
    exceptions themselves.
    """
    name, _ = split_name(text)
    plain = write_by_path(read_by_path(text))
    return f"{name} ({hashlib.sha256(plain.encode()).hexdigest()[:4]})" if name else plain


def by_path(value: Limit, read: Callable[[str], object]) -> Limit:
    """Texts whose values meet a limit, once they are read."""

    def holds(text: str) -> bool:
        return all(value.holds(read(one)) for _, one in read_by_path(text))

    def words() -> str:
        return (
            f"'PATTERN: VALUE, PATTERN: VALUE', a full-match regex on paths and {value.said} each"
        )

    return Limit(words, holds)
