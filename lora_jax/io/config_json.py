"""JSON files of a model folder, and errors that name the file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Raw = Mapping[str, Any]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} needs a {path.name} next to its weights, and there is none. Give a "
            "Hugging Face model folder."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Fetch it, or save it, again.") from None
    if not isinstance(raw, dict):
        raise ValueError(
            f"{path} needs a JSON object, and is not a JSON object. Fetch it, or save it, again."
        )
    return raw


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
