"""Settings that people write: each of the type that it is taken for."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

_SAID = {Integral: "a whole number", Real: "a number", bool: "True or False"}


def check_types(what: str, settings: Any, **kinds: Any) -> None:
    """Nothing, if each named field of `settings` is of its kind: Integral, Real or bool.

    Raises:
        TypeError: one is not. A truth value is an int to Python, and no number here.
    """
    for name, kind in kinds.items():
        value = getattr(settings, name)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise TypeError(f"{what}{name} must be {_SAID[kind]}, got {value!r}.")
