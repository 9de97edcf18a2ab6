"""What a parsed config.json may say, and errors that name the file."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Raw = Mapping[str, Any]
_UNIONS = (typing.Union, types.UnionType)
_LARGEST = 1e38  # of numbers that are computed with in float32


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
    """Inside, the text of a ValueError gets the name of the file that it is about, if it lacks
    that.
    """
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from None


def whole_numbers(raw: Raw, *names: str) -> None:
    """Checks sizes before anything is made of them.

    Raises:
        KeyError: one is missing. ValueError: one is no number from 1, or larger than any model's.
    """
    for name in names:
        if type(raw[name]) is not int or not 1 <= raw[name] < _most(name):
            raise ValueError(f"{name} must be a whole number from 1, and is {raw[name]!r:.80}")


def _most(name: str) -> int:
    """What a size is below: arrays have these sizes, but for layers, which are counted as tensors
    before anything is made for each.
    """
    return 1 << 40 if "layer" in name else 1 << 31


def typed(config: Any) -> Any:
    """A configuration whose fields are of the types that its class says: numbers are finite, whole
    ones are below 2**31, and those of fields that hold fractions are made floats.

    Raises:
        TypeError: a field is not; it is named.
    """
    kinds = typing.get_type_hints(type(config))
    names = [field.name for field in dataclasses.fields(config)]
    fields = {name: _as(kinds[name], getattr(config, name), name) for name in names}
    return dataclasses.replace(config, **fields)


def _as(kind: Any, value: Any, name: str) -> Any:
    """The value as one of a field's type, which may be a choice of several."""
    options = typing.get_args(kind) if typing.get_origin(kind) in _UNIONS else (kind,)
    if value is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, kind):
        return typed(value)
    if origin is tuple and isinstance(value, tuple):
        return tuple(_as(inner[0], item, name) for item in value)
    if origin is typing.Literal and isinstance(value, str) and value in inner:
        return value
    if kind is float and type(value) in (int, float) and abs(value) < _LARGEST:
        return float(value)
    if kind is int and type(value) is int and abs(value) < _most(name):
        return value
    if kind in (bool, str) and type(value) is kind:
        return value
    raise TypeError(f"{name} must be {_said(kind)}, and is {value!r:.80}")


def _said(kind: Any) -> str:
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(inner)}"
    if inner:
        return f"several values, each {_said(inner[0])}"
    return words.get(kind, kind.__name__)


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
