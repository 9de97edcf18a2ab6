"""Settings: a ConfigDict becomes frozen dataclasses here, once, or an error that says what to write
instead.

`load_config` is the door of every command: it runs a config file's `get_config(arg)`, applies
`--config.a.b=value` overrides, fills in defaults, checks, and returns a `Config`. Nothing below it
sees a dict.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.util
import inspect
import json
import math
import numbers
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_collections

from lora_jax.config.fields import (
    Config,
    choose,
    default_of,
    flatten,
    listed,
)
from lora_jax.config.limits import validate


class UnknownKeyError(KeyError):
    """A KeyError that prints its message as it is: KeyError itself prints the repr."""

    def __str__(self) -> str:
        return str(self.args[0])


def load_config(spec: str, overrides: Sequence[str] = ()) -> Config:
    """The checked config of a file `path/to/file.py[:arg]`, with `config.a.b=value` overrides
    applied in order.

    Overrides take the type of the key they name: `config.sweep.rank=1,2,4` (or `(1,2,4)`, or `1`)
    for a tuple, `None` where the key may be None, `true` or `false`, numbers such as `1e-3`.
    Leading dashes are allowed.

    Raises:
        FileNotFoundError: there is no such file; near names are listed.
        UnknownKeyError: a key that no config has.
        TypeError, ValueError: the file or a value is wrong; the text says what to write.
    """
    values = _fill(_run_config_file(spec))
    for override in overrides:
        _override(values, override)
    return from_config_dict(values)


def from_config_dict(values: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """The frozen `Config` of a nested dict; keys that are left out keep their defaults.

    Lists become tuples and ints become floats where the field says so; nothing else is converted.

    Raises:
        UnknownKeyError: a key that no config has; near names are listed.
        TypeError, ValueError: a value of the wrong type, or outside what the field's comment
            allows.
    """
    config = _build(Config, _plain(values), "")
    validate(config)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a config (or of a group of it): what config.json holds. Tuples become
    lists.
    """
    return json.loads(json.dumps(dataclasses.asdict(config)))


def describe(config: Config) -> list[tuple[str, Any, bool]]:
    """(dotted key, value, whether it differs from the default) of every setting: what a run prints
    when it starts.
    """
    defaults = flatten(Config())
    return [(key, value, value != defaults[key]) for key, value in flatten(config).items()]


# ---------------------------------------------------------------------------------------------- values against types


def _plain(values: Any) -> Any:
    try:
        return values.to_dict() if isinstance(values, ml_collections.ConfigDict) else values
    except ml_collections.config_dict.RequiredValueError as error:
        raise ValueError(
            f"Every required placeholder of a config file needs a value, but: {error}. Give it one "
            "in get_config."
        ) from error


@functools.cache
def _kinds(group: type) -> dict[str, Any]:
    return typing.get_type_hints(group)


def _build(group: type, values: Any, prefix: str) -> Any:
    """An instance of the dataclass `group`, whose keys stand under `prefix`."""
    if not isinstance(values, Mapping):
        raise TypeError(_needs(prefix.rstrip("."), group, values))
    kinds = _kinds(group)
    for name in values:
        if name not in kinds:
            raise _unknown(f"{prefix}{name}", group)
    return group(
        **{name: _coerce(value, kinds[name], prefix + name) for name, value in values.items()}
    )


def _coerce(value: Any, kind: Any, key: str) -> Any:
    """`value` as the annotation `kind` wants it, or an error that names `key`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _build(kind, value, key + ".")
    if origin is types.UnionType:
        return None if value is None else _coerce(value, arguments[0], key)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_coerce(item, arguments[0], key) for item in value)
    if origin is Literal and isinstance(value, str):
        return choose(value, arguments, key)
    is_number = not isinstance(value, bool)
    if kind is int and is_number and isinstance(value, numbers.Integral):
        return int(value)
    if kind is float and is_number and isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise ValueError(
                f"config.{key} needs a finite number, got {value}. The default is "
                f"{default_of(key)!r}."
            )
        return float(value)
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise TypeError(_needs(key, kind, value))


def _needs(key: str, kind: Any, value: Any) -> str:
    """The text of a type error: needed, came, do."""
    if dataclasses.is_dataclass(kind):
        name = f"config.{key}" if key else "A config"
        return f"{name} is a group of settings, got {value!r}. Set them one by one: {', '.join(_kinds(kind))}."
    default = default_of(key)
    return f"config.{key} needs {_words(kind)}, got {value!r} ({type(value).__name__}). The default is {default!r}."


def _words(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return f"{_words(arguments[0])}, or None"
    if origin is tuple:
        return f"a list, each item {_words(arguments[0])}"
    if origin is Literal:
        return f"one of {listed(arguments)}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def _unknown(key: str, group: type) -> UnknownKeyError:
    """The error for a key that is not there: near siblings first, then the same word in other
    groups.
    """
    prefix, _, leaf = key.rpartition(".")
    prefix += "." if prefix else ""
    near = [prefix + name for name in difflib.get_close_matches(leaf, _kinds(group), 3)]
    near += [other for other in flatten(Config()) if other.rpartition(".")[2] == leaf]
    hint = f" Nearest: {listed(near[:3])}." if near else ""
    where = f"config.{prefix.rstrip('.')}" if prefix else "config"
    return UnknownKeyError(
        f"There is no setting config.{key}.{hint} Keys of {where}: {', '.join(_kinds(group))}."
    )


# ---------------------------------------------------------------------------------------------- files and overrides


def _run_config_file(spec: str) -> Any:
    """What `get_config(arg)` of the file in `path/to/file.py[:arg]` returns."""
    name, colon, argument = spec.partition(".py:")
    path = Path(name + ".py" if colon else name)
    if not path.is_file():
        names = [str(other) for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), names, 3, 0.4) or names[:5]
        raise FileNotFoundError(
            "A config is a Python file, path/to/file.py or path/to/file.py:arg, but there is no "
            f"{path}. "
            f"In its folder: {listed(near) or 'no .py file'}."
        )
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)  # As for a script: a config imports what lies beside it.
    try:
        module_spec = importlib.util.spec_from_file_location(f"lora_jax_config_{path.stem}", path)
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(
            f"The config file {path} must be Python that defines get_config(arg), but running it "
            "gave "
            f"{type(error).__name__}: {error}. Try: python {path}."
        ) from error
    finally:
        sys.path.remove(folder)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        near = difflib.get_close_matches("get_config", vars(module), 1)
        raise ValueError(
            f"The config file {path} needs a function get_config(arg) that returns an "
            "ml_collections.ConfigDict, "
            f"but it defines none{f'; nearest: {near[0]!r}' if near else ''}. Copy its shape from "
            "configs/default.py."
        )
    arguments = (argument,) if colon else ()
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        takes = f"get_config{inspect.signature(get_config)}"
        raise ValueError(
            f"The config {spec!r} does not fit {takes} in {path}: {error}. Write {path}:ARG to "
            f"pass an argument, {path} to pass none."
        ) from error
    try:
        values = get_config(*arguments)
    except Exception as error:
        call = f"get_config({', '.join(map(repr, arguments))})"
        raise ValueError(
            f"{call} in {path} must return a config, but raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(values, (ml_collections.ConfigDict, Mapping)):
        raise TypeError(
            f"get_config in {path} must return an ml_collections.ConfigDict or a dict, got "
            f"{type(values).__name__}. "
            "Does it end in `return config`?"
        )
    return values


def _fill(values: Any) -> dict[str, Any]:
    """The nested dict of every setting: those given, then the defaults. Types are checked, ranges
    not yet.
    """
    return to_dict(_build(Config, _plain(values), ""))


def _override(values: dict[str, Any], override: str) -> None:
    """Sets one `config.a.b=value` in the nested dict `values`."""
    name, equals, text = override.lstrip("-").partition("=")
    if not equals or not name.startswith("config."):
        raise ValueError(
            f"An override reads --config.group.key=value, got {override!r}. Example: "
            "--config.lora.rank=4."
        )
    kind: Any = Config
    *groups, leaf = name.removeprefix("config.").split(".")
    for depth, part in enumerate((*groups, leaf)):
        if not dataclasses.is_dataclass(kind):
            value_key = ".".join(groups[:depth])
            raise UnknownKeyError(
                f"There is no setting {name}: config.{value_key} is a value, not a group. Set that "
                "one."
            )
        if part not in _kinds(kind):
            raise _unknown(".".join((*groups, leaf)[: depth + 1]), kind)
        kind = _kinds(kind)[part]
    key = ".".join((*groups, leaf))
    value = _coerce(_parse(text.strip(), kind), kind, key)
    functools.reduce(lambda group, part: group[part], groups, values)[leaf] = value


def _parse(text: str, kind: Any) -> Any:
    """The value that `text` spells for the annotation `kind`; the text itself where it spells
    none.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if text == "None" else _parse(text, arguments[0])
    if origin is tuple:
        return [_parse(item, arguments[0]) for item in split_items(text)]
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def read_value(key: str, text: str) -> Any:
    """The value that `text` spells for the setting at a dotted key, as an override of it would.

    Raises:
        UnknownKeyError: there is no such setting.
        TypeError, ValueError: it is none that the setting can have.
    """
    kind: Any = Config
    for part in key.split("."):
        if not dataclasses.is_dataclass(kind) or part not in _kinds(kind):
            raise _unknown(key, Config)
        kind = _kinds(kind)[part]
    return _coerce(_parse(text.strip(), kind), kind, key)


def split_items(text: str) -> list[str]:
    """The items of `1,2,4`, `(1, 2, 4)`, `[1]` or `1`; commas inside brackets or quotes do not
    divide.
    """
    items, depth, quote, start, closes_at_end = [], 0, "", 0, True
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
