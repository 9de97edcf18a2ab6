"""Names of parameters, `layers/attn/q/kernel`, and ordered rules on them.

The first rule that matches the whole name wins, and no rule may go unused.
"""

from __future__ import annotations

import difflib
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import traverse_util

S = TypeVar("S")
Rules = Sequence[tuple[str, S | None]]


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`{'a/b/kernel': leaf}` for nested mappings; all else (an array, a box) is a leaf."""
    return traverse_util.flatten_dict(_plain(tree), sep="/") if tree else {}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dictionaries that `flatten` came from."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def key_for(key: jax.Array, path: str) -> jax.Array:
    """A random key of the path's own, whatever other paths there are."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def layer_of(path: str) -> tuple[str, int | None]:
    """The path with its layer's number as '*', and the number; itself and None if it has none.

    Layers that are not stacked are numbered 'layers_3' or 'h/3'.
    """
    found = re.search(r"(?<=[_/])(\d+)(?=/)", path)
    if found is None:
        return path, None
    return f"{path[: found.start()]}*{path[found.end() :]}", int(found.group(1))


def nearest(name: str, known: Iterable[str], count: int = 4) -> list[str]:
    """Up to `count` known names, the most similar first; any of them if none is similar."""
    known = list(known)
    return difflib.get_close_matches(name, known, n=count, cutoff=0.4) or known[:count]


def entry(table: Mapping[str, S], name: str, what: str) -> S:
    """The table's entry of that name; `what` it is, in the error.

    Raises:
        ValueError: there is none; all names and the nearest are listed.
    """
    if name not in table:
        raise ValueError(
            f"Unknown {what} {name!r}. Known: {', '.join(table)}; nearest: "
            f"{nearest(name, table, 1)[0]!r}."
        )
    return table[name]


def match(
    rules: Rules[S],
    paths: Iterable[str],
    *,
    what: str,
    among: str = "sites",
    kind: type[S] | None = None,
) -> dict[str, S]:
    """For each path, the value of the first rule whose regular expression matches all of it.

    Paths that no rule matches are left out, and so are those whose rule has the value None.

    Args:
        what: the name of the rules in errors, such as 'lora'.
        among: what the paths are, in errors.
        kind: what a rule's value has to be, if it is not None.

    Raises:
        TypeError: the rules are no list of pairs, or a value is of another kind.
        ValueError: a rule is not a regular expression, matches no path, or matches only paths that
            earlier rules took.

    >>> match([("a/.*", 1), (".*", None)], ["a/x", "b/x"], what="demo")
    {'a/x': 1}
    """
    paths, rules = list(paths), _pairs(rules, what, kind)
    compiled = [(pattern, _compile(pattern, what), value) for pattern, value in rules]
    found: dict[str, S] = {}
    used: set[int] = set()

    for path in paths:
        index = next((i for i, (_, regex, _) in enumerate(compiled) if regex.fullmatch(path)), None)
        if index is None:
            continue
        used.add(index)
        if compiled[index][2] is not None:
            found[path] = compiled[index][2]

    for index, (pattern, regex, _) in enumerate(compiled):
        if index not in used:
            raise ValueError(_unused(pattern, regex, paths, what, among))
    return found


def _pairs(rules: Any, what: str, kind: type | None) -> list[tuple[str, Any]]:
    value = "value" if kind is None else f"{kind.__name__}()"
    needed = f"{what} needs a list of pairs, such as [('layers/.*/kernel', {value})]"
    if isinstance(rules, Mapping):
        raise TypeError(f"{needed}, as the first that matches wins; got a dict. Give its items().")
    if isinstance(rules, str) or not isinstance(rules, Iterable):
        raise TypeError(f"{needed}; got {rules!r}.")
    pairs = list(rules)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(f"{needed}; {pair!r} is no such pair.")
        if kind is not None and not isinstance(pair[1], (kind, type(None))):
            raise TypeError(f"{needed}; the value of {pair[0]!r} is {pair[1]!r}.")
    return pairs


def _unused(pattern: str, regex: re.Pattern[str], paths: list[str], what: str, among: str) -> str:
    if any(regex.fullmatch(path) for path in paths):
        return (
            f"{what} rule {pattern!r} is never reached: earlier rules match all that it matches. "
            "Put it before them, or delete it."
        )
    close = ", ".join(repr(path) for path in nearest(pattern, paths))
    return (
        f"{what} rule {pattern!r} matches none of {len(paths)} {among}. Nearest: "
        f"{close or 'none (there are no ' + among + ')'}. Rules are full-match regular "
        "expressions on paths; list them with lora_jax.find_sites(model, *inputs)."
    )


def _compile(pattern: str, what: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{what} rule {pattern!r} is not a regular expression: {error}. Patterns match whole "
            "paths, e.g. 'layers/.*/kernel'."
        ) from None


def _plain(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    return {name: _plain(value) for name, value in tree.items()}
