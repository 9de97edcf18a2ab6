"""The door of every command: a config file's ConfigDict, its overrides, and the `Config` of it."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from lora_jax.config.fields import Config, flatten
from lora_jax.config.limits import listed
from lora_jax.config.rules import check_together
from lora_jax.config.shipped import path_of_config
from lora_jax.config.values import build, default_of, read_value
from lora_jax.core.extras import needs

with needs("training"):
    import ml_collections
    from ml_collections.config_dict import FieldReference


def load_config(spec: str, overrides: Sequence[str] = ()) -> Config:
    """The checked config of a file `path/to/file.py[:arg]`, or of a shipped one `name[:arg]` (as
    `lora_jax.config.shipped_configs` has them), with `config.a.b=value` overrides applied in order.

    Overrides are set on the ConfigDict that the file returns, so a setting that the file derives
    from another by a FieldReference follows it. They take the type of the key they name:
    `config.sweep.rank=1,2,4` (or `(1,2,4)`, or `1`) for a tuple, `None` where the key may be None,
    `true` or `false`, numbers such as `1e-3`; lines such as those of `config.sweep.axes` are
    divided by `;`. Leading dashes are allowed.

    Raises:
        FileNotFoundError: there is no such file; near names are listed.
        UnknownKeyError: a key that no config has.
        TypeError, ValueError: the file or a value is wrong; the text says what to write.
    """
    return with_overrides(_run_config_file(spec), overrides)


def with_overrides(
    values: ml_collections.ConfigDict | Mapping[str, Any], overrides: Sequence[str]
) -> Config:
    """The checked config of what a file's get_config returns, with overrides as `load_config` has
    them.
    """
    build(Config, _plain(values))  # What is wrong in the file is said before any override.
    values = ml_collections.ConfigDict(values)
    for override in overrides:
        _override(values, override)
    return from_config_dict(values)


def from_config_dict(values: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """The frozen `Config` of a nested dict; keys that are left out keep their defaults.

    Lists become tuples and ints become floats where the field says so; nothing else is converted.

    Raises:
        UnknownKeyError: a key that no config has; near names are listed.
        TypeError, ValueError: a value of the wrong type, outside its field's limit, or one that
            does not go with the others.
    """
    config = build(Config, _plain(values))
    check_together(config)
    return config


def validate(config: Config) -> None:
    """Nothing, if every value is legal and the values go together.

    Raises:
        TypeError, ValueError: the first one that is not, with what to write instead.
    """
    build(Config, {field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    check_together(config)


def to_dict(config: Any) -> Any:
    """Nested plain dict of a config (or of a group of it): what config.json holds. Tuples become
    lists.
    """
    if dataclasses.is_dataclass(config):
        fields = dataclasses.fields(config)
        return {field.name: to_dict(getattr(config, field.name)) for field in fields}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    return [to_dict(item) for item in config] if isinstance(config, tuple) else config


def describe(config: Config) -> list[tuple[str, Any, bool]]:
    """(dotted key, value, whether it differs from the default) of every setting: what a run prints
    when it starts.
    """
    return [(key, value, value != default_of(key)) for key, value in flatten(config).items()]


def _plain(values: Any) -> Any:
    """Nested dicts of ConfigDicts and Mappings, with what their references stand for now."""
    try:
        return _resolved(values)
    except ml_collections.config_dict.RequiredValueError as error:
        raise ValueError(
            f"Every required placeholder of a config file needs a value, but: {error}. Give it one "
            "in get_config."
        ) from error


def _resolved(values: Any) -> Any:
    if isinstance(values, (ml_collections.ConfigDict, Mapping)):
        return {key: _resolved(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return tuple(_resolved(item) for item in values)
    return _resolved(values.get()) if isinstance(values, FieldReference) else values


def _override(values: ml_collections.ConfigDict, override: str) -> None:
    """Sets one `config.a.b=value`; references to that setting follow."""
    name, equals, text = override.lstrip("-").partition("=")
    if not equals or not name.startswith("config."):
        raise ValueError(
            f"An override reads --config.group.key=value, got {override!r}. Example: "
            "--config.lora.rank=4."
        )
    key = name.removeprefix("config.")
    value = read_value(key, text)

    *groups, leaf = key.split(".")
    for part in groups:
        with values.unlocked():
            if values.get(part) is None:
                values[part] = ml_collections.ConfigDict()
        values = values[part]
    # The field's own type was checked above; the file may have an int where a float goes.
    with values.unlocked(), values.ignore_type():
        values[leaf] = value


def _run_config_file(spec: str) -> Any:
    """What `get_config(arg)` of the file in `path/to/file.py[:arg]`, or of the shipped config
    `name[:arg]`, returns.
    """
    if spec.endswith(".py") or ".py:" in spec:
        name, colon, argument = spec.partition(".py:")
        path = Path(name + ".py" if colon else name)
    else:
        name, colon, argument = spec.partition(":")
        path = path_of_config(name)
    if not path.is_file():
        names = [str(other) for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), names, 3, 0.4) or names[:5]
        raise FileNotFoundError(
            "A config is a Python file, path/to/file.py or path/to/file.py:arg, but there is no "
            f"{path}. In its folder: {listed(near) or 'no .py file'}. Shipped ones go by name "
            "(`lora-jax configs`)."
        )

    module = run_file(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        near = difflib.get_close_matches("get_config", vars(module), 1)
        raise ValueError(
            f"The config file {path} needs a function get_config(arg) that returns an "
            "ml_collections.ConfigDict, but it defines none"
            f"{f'; nearest: {near[0]!r}' if near else ''}. Copy its shape from configs/default.py."
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

    # What it imports when it is called is looked for as what it imported at its top.
    try:
        with _neighbours(path):
            values = get_config(*arguments)
    except Exception as error:
        call = f"get_config({', '.join(map(repr, arguments))})"
        raise ValueError(
            f"{call} in {path} must return a config, but raised {type(error).__name__}: {error}"
        ) from error
    kinds = (ml_collections.ConfigDict, ml_collections.FrozenConfigDict, Mapping)
    if not isinstance(values, kinds):
        raise TypeError(
            f"get_config in {path} must return an ml_collections.ConfigDict or a dict, got "
            f"{type(values).__name__}. Does it end in `return config`?"
        )
    return values


def run_file(path: Path) -> ModuleType:
    """The module of a config file. It can import its neighbours: what lies beside it, and beside
    the folders that it lies in, so `from configs.common import ...` in a checkout.

    Raises:
        ValueError: the file cannot be run; the text says why.
    """
    name = f"lora_jax_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # Dataclasses look up their annotations there.
    try:
        with _neighbours(path):
            spec.loader.exec_module(module)
    except Exception as error:
        if before is None:
            del sys.modules[name]
        raise ValueError(
            f"The config file {path} must be Python that defines get_config(arg), but running it "
            f"gave {type(error).__name__}: {error}."
        ) from error
    return module


@contextmanager
def _neighbours(path: Path) -> Iterator[None]:
    """Python looks for modules in the file's folder first, as for a script, and in the folders
    above it after everything that is installed.
    """
    folder, *above = map(str, path.resolve().parents)
    before = list(sys.path)
    sys.path[:] = [folder, *before, *above]
    try:
        yield
    finally:
        sys.path[:] = before
