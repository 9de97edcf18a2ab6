"""From plain values and text to the types of the settings, or an error that names the key."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import numbers
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from lora_jax.config.fields import Columns, Config, Line, flatten
from lora_jax.config.limits import Limit, ReadBy, Targets, listed, named_targets, one_of
from lora_jax.data.recipes import RECIPES


class UnknownKeyError(KeyError):
    """A KeyError that prints its message as it is: KeyError itself prints the repr."""

    def __str__(self) -> str:
        return str(self.args[0])


def kinds(group: type) -> dict[str, Any]:
    """The annotation of each field of a group, with its limits."""
    if group is Columns:
        # Looked up each time: recipes can be registered later.
        roles = (role for recipe in RECIPES.values() for role in recipe.fields)
        return dict.fromkeys(roles, str | None)
    return _annotations(group)


@functools.cache
def _annotations(group: type) -> dict[str, Any]:
    return typing.get_type_hints(group, include_extras=True)


def kind_of(key: str) -> Any:
    """The annotation of the setting at a dotted key.

    Raises:
        UnknownKeyError: there is no such setting; near names are listed.
    """
    kind: Any = Config
    path = key.split(".")
    for depth, part in enumerate(path):
        if not _is_group(kind):
            value = ".".join(path[:depth])
            raise UnknownKeyError(
                f"There is no setting config.{key}: config.{value} is a value, not a group. Set "
                "that one."
            )
        if part not in kinds(_bare(kind)):
            raise _unknown(".".join(path[: depth + 1]), _bare(kind))
        kind = kinds(_bare(kind))[part]
    return kind


def readers(key: str) -> tuple[str, ...] | None:
    """The methods that read the setting at a dotted key, by the field's and its groups' `ReadBy`;
    None = all of them.
    """
    return _readers()[key]


@functools.cache
def _readers() -> dict[str, tuple[str, ...] | None]:
    found: dict[str, tuple[str, ...] | None] = {}

    def walk(group: type, prefix: str, above: tuple[str, ...] | None) -> None:
        for name, kind in kinds(group).items():
            own = next((mark.methods for mark in _marks(kind) if isinstance(mark, ReadBy)), above)
            if dataclasses.is_dataclass(_bare(kind)):
                walk(_bare(kind), f"{prefix}{name}.", own)
            else:
                found[prefix + name] = own

    walk(Config, "", None)
    return found


def build(group: type, values: Any, prefix: str = "") -> Any:
    """An instance of the dataclass `group`, whose keys stand under `prefix`, of a nested dict. Keys
    that are left out keep their defaults; lists become tuples and ints floats where the field says
    so.

    Raises:
        UnknownKeyError: a key that the group has not; near names are listed.
        TypeError, ValueError: a value of the wrong type, or outside its limit.
    """
    if not isinstance(values, Mapping):
        raise TypeError(_needs(prefix.rstrip("."), group, values))
    known = kinds(group)
    for name in values:
        if name not in known:
            raise _unknown(f"{prefix}{name}", group)
    made = {name: coerce(value, known[name], prefix + name) for name, value in values.items()}
    if group is Columns:
        return Columns({role: column for role, column in made.items() if column is not None})
    return group(**made)


def coerce(value: Any, kind: Any, key: str) -> Any:
    """`value` as the annotation `kind` of `config.key` wants it.

    Raises:
        UnknownKeyError, TypeError, ValueError: as `build`.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        found = coerce(value, arguments[0], key)
        for limit in arguments[1:]:
            if isinstance(limit, Limit):
                limit.check(found, key, default_of(key))
        return found
    if origin is types.UnionType or origin is typing.Union:
        return None if value is None else coerce(value, arguments[0], key)

    if _is_group(kind):
        # A group that is there already is walked as well: `replace` checks nothing.
        if isinstance(value, kind) and dataclasses.is_dataclass(kind):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
        return build(kind, value, key + ".")
    if origin is tuple and arguments[0] == Targets and isinstance(value, Mapping):
        value = named_targets(value, key)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(coerce(item, arguments[0], key) for item in value)
    if origin is Literal and isinstance(value, str):
        one_of(arguments).check(value, key, default_of(key))
        return value

    is_number = not isinstance(value, bool)
    if kind is int and is_number and isinstance(value, numbers.Integral):
        return int(value)
    if kind is float and is_number and isinstance(value, numbers.Real):
        if not abs(value) <= sys.float_info.max:  # also an int that is no float
            raise ValueError(
                f"config.{key} needs a finite number, got {value!s:.40}. The default is "
                f"{default_of(key)!r}."
            )
        return float(value)
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise TypeError(_needs(key, kind, value))


def read_value(key: str, text: str) -> Any:
    """The value that `text` spells for the setting at a dotted key, as an override of it would.

    Raises:
        UnknownKeyError: there is no such setting.
        TypeError, ValueError: it is none that the setting can have.
    """
    kind = kind_of(key)
    return coerce(_parse(text.strip(), kind), kind, key)


def with_value(config: Any, key: str, value: Any) -> Any:
    """The config with another value at a dotted key."""
    name, _, rest = key.partition(".")
    if isinstance(config, Columns):
        changed = {**config, name: value}
        return Columns({role: column for role, column in changed.items() if column is not None})
    return dataclasses.replace(
        config, **{name: with_value(getattr(config, name), rest, value) if rest else value}
    )


def value_of(config: Any, key: str) -> Any:
    """The value at a dotted key; None for the column of a role that is not named."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Columns) else getattr(config, part)
    return config


def default_of(key: str) -> Any:
    """The default of a dotted key; None where it has none of its own, as inside a list."""
    return _defaults().get(key)


@functools.cache
def _defaults() -> dict[str, Any]:
    return flatten(Config())


def _bare(kind: Any) -> Any:
    """An annotation without its marks, and without its None."""
    while typing.get_origin(kind) in (Annotated, types.UnionType, typing.Union):
        kind = typing.get_args(kind)[0]
    return kind


def _marks(kind: Any) -> Iterator[Any]:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Annotated:
        yield from typing.get_args(kind)[1:]


def _is_group(kind: Any) -> bool:
    return dataclasses.is_dataclass(_bare(kind)) or _bare(kind) is Columns


def _needs(key: str, kind: Any, value: Any) -> str:
    """The text of a type error: needed, came, do."""
    if _is_group(kind):
        name = f"config.{key}" if key else "A config"
        return (
            f"{name} is a group of settings, got {value!r}. Set them one by one: "
            f"{', '.join(kinds(kind))}."
        )
    return (
        f"config.{key} needs {_words(kind)}, got {value!r} ({type(value).__name__}). The default "
        f"is {default_of(key)!r}."
    )


def _words(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _words(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return f"{_words(arguments[0])}, or None"
    if origin is tuple:
        return f"a list, each item {_words(arguments[0])}"
    if origin is Literal:
        return f"one of {listed(arguments)}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, "a group of settings")


def _unknown(key: str, group: type) -> UnknownKeyError:
    """The error for a key that is not there: near siblings first, then the same word in other
    groups.
    """
    prefix, _, leaf = key.rpartition(".")
    prefix += "." if prefix else ""
    near = [prefix + name for name in difflib.get_close_matches(leaf, kinds(group), 3)]
    near += [other for other in _defaults() if other.rpartition(".")[2] == leaf]
    hint = f" Nearest: {listed(near[:3])}." if near else ""
    where = f"config.{prefix.rstrip('.')}" if prefix else "config"
    return UnknownKeyError(
        f"There is no setting config.{key}.{hint} Keys of {where}: {', '.join(kinds(group))}."
    )


def _parse(text: str, kind: Any) -> Any:
    """The value that `text` spells for the annotation `kind`; the text itself where it spells
    none.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _parse(text, arguments[0])
    if origin in (types.UnionType, typing.Union):
        return None if text == "None" else _parse(text, arguments[0])
    if origin is tuple:
        # A line has commas of its own; where it stands in brackets or quotes it is an item.
        is_line = arguments[0] == Line and text[:1] not in tuple("([{'\"")
        items = text.split(";") if is_line else split_items(text)
        return [_parse(item.strip(), arguments[0]) for item in items if item.strip()]
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def split_items(text: str) -> list[str]:
    """The items of `1,2,4`, `(1, 2, 4)`, `[1]` or `1`; commas inside brackets or quotes do not
    divide.
    """
    items: list[str] = []
    depth, quote, start, closes_at_end = 0, "", 0, True
    for position, letter in enumerate(text):
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
            closes_at_end &= depth > 0 or position == len(text) - 1
        elif letter == "," and depth == 0:
            items.append(text[start:position])
            start = position + 1
    if not items and closes_at_end and text[:1] + text[-1:] in ("()", "[]"):
        return split_items(text[1:-1])
    return [item.strip() for item in (*items, text[start:]) if item.strip()]
