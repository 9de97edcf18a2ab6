"""Rows that users add to the tables of this library."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import TypeVar

S = TypeVar("S")


def register(
    table: MutableMapping[str, S], name: str, value: S, what: str, *, differs: str = "is another"
) -> S:
    """The value, which now has this name in the table; `what` it is, in the error.

    Raises:
        ValueError: the name is taken by another, or is none.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise ValueError(
            f"A name of a {what} begins with a letter and is made of letters, digits and _, got "
            f"{name!r}."
        )
    if table.get(name, value) != value:
        raise ValueError(
            f"A {what} named {name!r} exists and {differs}. Give the new one a name of its own."
        )
    return table.setdefault(name, value)
