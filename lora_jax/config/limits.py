"""What a setting may be besides its type, written on its field: `Annotated[int, at_least(1)]`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

# With scan the blocks are `layers/...`, without it `layers_0/...`, `layers_1/...`: one name must
# serve both. A regex here is what runs of that name have in their ids; what it takes in models of
# another form, of two stacks or of experts: `tasks/targets.py: in_model`.
TARGETS: dict[str, str] = {
    "query+value": r"layers(_\d+)?/attn/(q|v)/kernel",
    "attention": r"layers(_\d+)?/attn/(q|k|v|o)/kernel",
    "mlp": r"layers(_\d+)?/mlp/(gate|up|down)/kernel",
    "all-linear": r"(layers(_\d+)?/.*|pooler)/kernel",
}
# No path has a '=', so that no pattern that matches one reads as a name.
_NAME = r"[A-Za-z][\w+.-]*"
_NAMED = re.compile(rf"({_NAME})\s*=\s*(.+)", re.DOTALL)


@dataclass(frozen=True)
class Limit:
    """Which values are legal: those for which `holds` is true. `words` is what an error says of
    them, and `names`, where they are names, what a misspelt one is compared with; both may be
    functions, as names can be registered later.
    """

    words: str | Callable[[], str]
    holds: Callable[[Any], object]
    names: Callable[[], Sequence[str]] = tuple

    @property
    def said(self) -> str:
        """The words."""
        return self.words if isinstance(self.words, str) else self.words()

    def check(self, value: Any, key: str, default: Any) -> None:
        """Nothing if the value is legal for `config.key`.

        Raises:
            ValueError: it is not; the nearest name, or else the default, is given.
        """
        try:
            if self.holds(value):
                return
        except ValueError as error:
            raise ValueError(f"config.{key}: {error}") from error
        names = self.names()
        near = difflib.get_close_matches(value, names, 1, 0.4) if names else []
        hint = f"Nearest: {near[0]!r}." if near else f"The default is {default!r}."
        raise ValueError(f"config.{key} must be {self.said}, got {value!r}. {hint}")


@dataclass(frozen=True)
class ReadBy:
    """The methods that read a setting or a group. The others' runs are the same whatever it says,
    so it is not part of their id. No methods: it changes files or memory, never a result.
    """

    methods: tuple[str, ...] = ()


def at_least(least: float) -> Limit:
    """Numbers from `least` on."""
    return Limit(f"{least} or more", lambda value: value >= least)


def one_of(table: Collection[str], *, besides: str = "", also: str | None = None) -> Limit:
    """Names of a table, those that it gets later too, one `besides`, and names that the regex
    `also` matches.
    """

    def known() -> tuple[str, ...]:
        return (*([besides] if besides else []), *table)

    def holds(value: str) -> bool:
        return value in known() or (also is not None and re.fullmatch(also, value) is not None)

    return Limit(lambda: f"one of {listed(known())}", holds, known)


def listed(names: Iterable[str]) -> str:
    """The names in quotes, for an error."""
    return ", ".join(repr(name) for name in names)


def split_name(text: str) -> tuple[str, str]:
    """(NAME, REST) of 'NAME=REST'; ('', text) of a text without a name."""
    found = _NAMED.fullmatch(text)
    return (found[1], found[2]) if found else ("", text)


def resolve_targets(name: str) -> str:
    """The regex on parameter paths that targets stand for: of a name in TARGETS its regex, of
    'NAME=TARGETS' that of what stands behind; any other text is a regex itself.

    Raises:
        ValueError: it is no regex, or a misspelt name.
    """
    called, rest = split_name(name)
    if called:
        return resolve_targets(rest)
    if name in TARGETS:
        return TARGETS[name]
    near = difflib.get_close_matches(name, TARGETS, 1, 0.75)
    if near and "/" not in name:
        raise ValueError(
            f"Targets {name!r} is neither a name nor a path pattern. Nearest name: {near[0]!r}; "
            f"names are {listed(TARGETS)}."
        )
    try:
        re.compile(name)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f"Targets must be one of {listed(TARGETS)} or a full-match regex on parameter paths, "
            f"got {name!r}, which is not a regex ({error}). An example: 'layers/attn/(q|v)/kernel'."
        ) from error
    return name


def name_of_targets(targets: str) -> str:
    """What targets are called: the NAME of 'NAME=TARGETS', the name in TARGETS that their regex
    has, or else the regex.

    Raises:
        ValueError: as `resolve_targets`.
    """
    called, _ = split_name(targets)
    if called:
        return called
    names = {regex: name for name, regex in TARGETS.items()}
    return names.get(resolve_targets(targets), targets)


def named_targets(sets: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """'NAME=TARGETS' of each entry of {name: targets}, which `config.key` was given.

    Raises:
        TypeError, ValueError: a name is none, or what it names is no text.
    """
    for name, targets in sets.items():
        if not re.fullmatch(_NAME, str(name)):
            raise ValueError(
                f"config.{key}: a name of targets begins with a letter and is made of letters, "
                f"digits and _ + . -, got {name!r}."
            )
        if not isinstance(targets, str):
            raise TypeError(
                f"config.{key}: {name!r} needs one of {listed(TARGETS)}, or a full-match regex on "
                f"parameter paths, got {targets!r} ({type(targets).__name__})."
            )
    return tuple(f"{name}={targets}" for name, targets in sets.items())


Count = Annotated[int, at_least(1)]
NotNegative = Annotated[int, at_least(0)]
Positive = Annotated[float, Limit("above 0", lambda value: value > 0)]
Weight = Annotated[float, at_least(0)]
Share = Annotated[float, Limit("at least 0 and below 1", lambda value: 0 <= value < 1)]
Name = Annotated[str, Limit("a name", bool)]
Targets = Annotated[
    str, Limit(f"one of {listed(TARGETS)}, a regex, or NAME=REGEX", resolve_targets)
]
