"""Regular expressions that a file brings, matched in bounded time.

Python's engine tries one way after the other, and `(a+)+b` takes it longer than anybody waits. Here
all places where a part of the pattern can end are followed together: the time is that of the
pattern's length times the name's, squared. Whether a whole name matches does not depend on the way,
so the answer is that of `re.fullmatch`.
"""

from __future__ import annotations

import functools
import re

# Of the standard library's own engine, so that patterns are understood as it understands them.
from re import _constants as op
from re import _parser
from typing import Any

_LONGEST = 100_000
_DEEPEST = 100
_LETTERS = (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN)
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT)
_CATEGORIES = {
    getattr(op, f"CATEGORY_{sign}{name}"): re.compile(text)
    for name, small in (("DIGIT", r"\d"), ("SPACE", r"\s"), ("WORD", r"\w"))
    for sign, text in (("", small), ("NOT_", small.upper()))
}
_Ends = set[int]


def check_pattern(pattern: str) -> None:
    """Nothing, if `matches` takes the pattern.

    Raises:
        ValueError: it is no regular expression, longer than 100,000 characters, nested too deeply,
            or has flags, references to groups, atomic groups or possessive quantifiers.
    """
    _parsed(pattern)


@functools.lru_cache(maxsize=1 << 16)
def matches(pattern: str, name: str) -> bool:
    """Whether the whole name matches; False for one that nearly does takes no longer.

    Raises:
        ValueError: as `check_pattern`.
    """
    return len(name) in _Match(name).ends(_parsed(pattern), {0})


@functools.lru_cache(maxsize=1 << 10)
def _parsed(pattern: str) -> Any:
    if len(pattern) > _LONGEST:
        raise ValueError(f"{pattern[:60]!r}... has {len(pattern):,} characters")
    try:
        parsed = _parser.parse(pattern)
        _check(parsed, 0)
    except (re.error, RecursionError, OverflowError, Warning) as error:
        raise ValueError(f"{pattern[:60]!r} is not a regular expression: {error}") from None
    except ValueError as error:
        raise ValueError(f"{pattern[:60]!r} is not supported here: {error}") from None
    if parsed.state.flags & ~re.UNICODE:
        raise ValueError(f"{pattern[:60]!r} is not supported here: it has flags")
    return parsed


def _check(parts: Any, depth: int) -> None:
    """Raises ValueError for what `_Match` does not follow."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    for kind, argument in parts:
        if kind in _LETTERS or kind is op.AT:
            continue
        if kind in (op.ASSERT, op.ASSERT_NOT) and argument[0] < 0:
            least, most = argument[1].getwidth()
            if least != most:
                raise ValueError("it looks behind for texts of several lengths")
        if kind is op.BRANCH:
            inner = argument[1]
        elif (
            kind in (op.ASSERT, op.ASSERT_NOT, *_REPEATS)
            or kind is op.SUBPATTERN
            and not argument[1]
            and not argument[2]
        ):
            inner = argument[-1:]
        else:
            raise ValueError(f"it has a {str(kind).lower()}")
        for part in inner:
            _check(part, depth + 1)


class _Match:
    """The places in one name where parts of a pattern can end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._held: dict[tuple[int, int], bool] = {}
        self._ends: dict[tuple[int, int], _Ends] = {}

    def ends(self, parts: Any, starts: _Ends) -> _Ends:
        """Where a sequence of parts can end that begins at one of `starts`."""
        return set().union(*(self._from(parts, start) for start in starts))

    def _from(self, parts: Any, start: int) -> _Ends:
        # Once for each place: nested repeats would ask for the same again and again.
        key = id(parts), start
        if key not in self._ends:
            places = {start}
            for kind, argument in parts:
                places = self._part(kind, argument, places)
            self._ends[key] = places
        return self._ends[key]

    def _part(self, kind: Any, argument: Any, starts: _Ends) -> _Ends:
        if kind is op.BRANCH:
            return set().union(*(self.ends(branch, starts) for branch in argument[1]))
        if kind is op.SUBPATTERN:
            return self.ends(argument[3], starts)
        if kind in _REPEATS:
            return self._repeated(*argument, starts)
        if kind is op.AT:
            return {start for start in starts if self._is_at(argument, start)}
        if kind in (op.ASSERT, op.ASSERT_NOT):
            wanted = kind is op.ASSERT
            return {start for start in starts if self._holds(*argument, start) is wanted}
        here = (start for start in starts if start < len(self._name))
        return {start + 1 for start in here if _takes(kind, argument, self._name[start])}

    def _repeated(self, least: int, most: int, parts: Any, starts: _Ends) -> _Ends:
        reached = starts
        for _ in range(least):
            before, reached = reached, self.ends(parts, reached)
            if reached == before:  # More rounds change nothing.
                break
        out, front = set(reached), reached
        for _ in range(min(int(most) - least, len(self._name) + 1)):
            front = self.ends(parts, front) - out
            out |= front
            if not front:
                break
        return out

    def _is_at(self, where: Any, place: int) -> bool:
        if where in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return place == 0
        if where in (op.AT_END, op.AT_END_STRING):
            newline = where is op.AT_END and self._name[place:] == "\n"
            return place == len(self._name) or newline
        around = self._name[max(place - 1, 0) : place], self._name[place : place + 1]
        before, after = (bool(re.match(r"\w", letter)) for letter in around)
        return (before != after) is (where is op.AT_BOUNDARY)

    def _holds(self, direction: int, parts: Any, place: int) -> bool:
        """Whether what a look ahead or behind asks for is there."""
        known = self._held.get((id(parts), place))
        if known is None:
            start = place if direction > 0 else place - parts.getwidth()[0]
            found = self.ends(parts, {start}) if start >= 0 else set()
            known = bool(found) if direction > 0 else place in found
            self._held[id(parts), place] = known
        return known


def _takes(kind: Any, argument: Any, letter: str) -> bool:
    """Whether a part that stands for one letter stands for this one."""
    if kind is op.ANY:
        return letter != "\n"
    if kind is not op.IN:
        return (ord(letter) == argument) is (kind is op.LITERAL)
    negated = argument[0][0] is op.NEGATE
    return negated is not any(_is_in(*entry, letter) for entry in argument[negated:])


def _is_in(kind: Any, argument: Any, letter: str) -> bool:
    if kind is op.LITERAL:
        return ord(letter) == argument
    if kind is op.RANGE:
        return argument[0] <= ord(letter) <= argument[1]
    return _CATEGORIES[argument].match(letter) is not None
