"""What a parsed config.json may say, and errors that name the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Raw = Mapping[str, Any]


@contextlib.contextmanager
def named_errors(path: Path, what: str) -> Iterator[None]:
    """Inside, what is wrong with a parsed file becomes an error that names it; `what` is what it
    should describe.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"{path} lacks the field {error}. Give the one that belongs to the weights."
        ) from None
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path} does not describe {what} that can be loaded: {error}") from None


@contextlib.contextmanager
def in_file(path: Path) -> Iterator[None]:
    """Inside, the text of a ValueError gets the name of the file that it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def whole_numbers(raw: Raw, *names: str) -> None:
    """Checks sizes before anything is made of them.

    Raises:
        KeyError: one is missing. ValueError: one is no number from 1.
    """
    for name in names:
        if type(raw[name]) is not int or raw[name] < 1:
            raise ValueError(f"{name} must be a whole number from 1, and is {raw[name]!r}")


def refuse(raw: Raw, **allowed: tuple[Any, ...]) -> None:
    """Checks settings that would make another model.

    Args:
        allowed: by field, the values that change nothing; None for a field that is not there.

    Raises:
        ValueError: a field has another value.
    """
    for name, values in allowed.items():
        if raw.get(name) not in values:
            raise ValueError(f"{name} {raw[name]!r} is not supported; needed {values[0]!r}")
