"""Axes of a grid over any setting, one a line: 'lora.alpha = 8, 16', zipped, or only for runs that
meet a condition.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_jax.config import (
    ADAPTERS,
    NO_FORMAT,
    Config,
    Targets,
    UnknownKeyError,
    canonical,
    flatten,
    kind_of,
    name_of_targets,
    read_value,
    resolve_targets,
    split_items,
    value_of,
    with_value,
)
from lora_jax.core.paths import nearest

_REFUSED = {
    "method": "sweep.baselines",
    "out": "--config.out of another sweep",
    "sweep": "the axes themselves",
}
_CONDITION = re.compile(r"(?P<key>[\w.]+)\s*(?P<operator>==|!=|\bin\b|\bnot in\b)\s*(?P<values>.+)")


@dataclass(frozen=True)
class Axis:
    """Settings that change together: each point has a value for every key. `when` says which runs
    have the axis at all.
    """

    text: str
    keys: tuple[str, ...]
    points: tuple[tuple[Any, ...], ...]
    when: tuple[Condition, ...] = ()

    def applies(self, run: Config) -> bool:
        """Whether the run meets the conditions."""
        return all(condition.holds(run) for condition in self.when)

    def runs(self, run: Config) -> list[Config]:
        """The run at every point; the run itself where the conditions do not hold, or where its
        method reads none of the keys.
        """
        if not self.applies(run) or not any(reads(run, key) for key in self.keys):
            return [run]
        return [
            with_settings(run, dict(zip(self.keys, point, strict=True))) for point in self.points
        ]


@dataclass(frozen=True)
class Condition:
    """`key` has one of the values, or with `negated` none of them."""

    key: str
    values: tuple[Any, ...]
    negated: bool

    def holds(self, run: Config) -> bool:
        """Whether the run meets it; targets do under their name and under any spelling of their
        regex.
        """
        value, values = value_of(run, self.key), self.values
        if kind_of(self.key) == Targets:
            if name_of_targets(value) in values:
                return not self.negated
            value, values = resolve_targets(value), tuple(map(resolve_targets, values))
        return (value in values) != self.negated


def read_axis(text: str) -> Axis:
    """The axis that a line spells: `KEY = v, v, ...`, `KEY, KEY = (v, w), (v, w), ...` (zipped),
    each with ` if CONDITION` behind.

    A condition is `KEY == v`, `KEY != v`, `KEY in (v, v)` or `KEY not in (v, v)`, several of them
    joined by ` and `.

    Raises:
        ValueError, TypeError: the line is no axis, or a value is none that the setting can have.
        UnknownKeyError: there is no such setting; near names are listed.
    """
    head, _, conditions = text.partition(" if ")
    left, equals, right = head.partition("=")
    keys = tuple(key.strip() for key in left.split(",") if key.strip())
    items = split_items(right.strip()) if equals else []
    # A point that stands alone has lost its brackets.
    if len(items) == len(keys) > 1 and not any(item.startswith(("(", "[")) for item in items):
        items = [right.strip()]
    if not keys or not items:
        raise ValueError(
            "config.sweep.axes: an axis reads 'KEY = value, value', 'KEY, KEY = (value, value), "
            f"(value, value)', and may end in ' if KEY == value'; got {text!r}."
        )

    for key in keys:
        check_key(key, text)
    points = []
    for item in items:
        values = split_items(item) if len(keys) > 1 else [item]
        if len(values) != len(keys):
            raise ValueError(
                f"config.sweep.axes: {text!r} changes {len(keys)} settings together, and {item!r} "
                f"has {len(values)} values."
            )
        points.append(
            tuple(read_value(key, value) for key, value in zip(keys, values, strict=True))
        )

    when = tuple(
        _condition(part.strip(), text) for part in conditions.split(" and ") if part.strip()
    )
    return Axis(text, keys, tuple(points), when)


def read_axes(lines: Sequence[str]) -> tuple[Axis, ...]:
    """The axes of all lines.

    Raises:
        ValueError: as `read_axis`, or a setting stands in two axes that no condition keeps apart.
    """
    axes = tuple(read_axis(line) for line in lines)
    seen: dict[str, str] = {}
    for axis in axes:
        for key in axis.keys:
            if not axis.when and key in seen:
                raise ValueError(
                    f"config.sweep.axes: {key} stands in two axes, {seen[key]!r} and "
                    f"{axis.text!r}. Put its values into one."
                )
            if not axis.when:
                seen[key] = axis.text
    return axes


def with_settings(run: Config, settings: dict[str, Any]) -> Config:
    """The run with other values at dotted keys. A format changes an adapter's method with it:
    'none' is lora, others are qlora.
    """
    for key, value in settings.items():
        run = with_value(run, key, value)
        if key == "quant.format" and run.method in ADAPTERS:
            run = replace(run, method="lora" if value == NO_FORMAT else "qlora")
    return run


def reads(run: Config, key: str) -> bool:
    """Whether the setting can change the run's numbers: groups that a method does not read, and
    file settings, cannot.
    """
    if key == "quant.format":
        return run.method in ADAPTERS
    settings = canonical(run)
    return key in settings or key.rpartition(".")[0] in settings  # the column of a role


def _condition(text: str, line: str) -> Condition:
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ValueError(
            "config.sweep.axes: a condition reads 'KEY == value' or 'KEY in (value, value)'; got "
            f"{text!r} in {line!r}."
        )
    key, operator = found["key"], found["operator"]
    if key != "method":
        check_key(key, line)
    values = split_items(found["values"].strip()) if "in" in operator else [found["values"].strip()]
    return Condition(
        key, tuple(read_value(key, value) for value in values), operator in ("!=", "not in")
    )


def check_key(key: str, line: str, *, where: str = "config.sweep.axes") -> None:
    """Raises ValueError or UnknownKeyError unless a sweep may change the setting; `line` and
    `where` say where the key stands.
    """
    group = key.partition(".")[0]
    if group in _REFUSED:
        raise ValueError(
            f"{where}: {key} is no axis of a sweep (in {line!r}). Use {_REFUSED[group]}."
        )
    try:
        kind_of(key)
    except UnknownKeyError:
        known = [name for name in flatten(Config()) if name.partition(".")[0] not in _REFUSED]
        raise UnknownKeyError(
            f"{where}: there is no setting {key} (in {line!r}). Nearest: "
            f"{', '.join(nearest(key, known, 3))}."
        ) from None
