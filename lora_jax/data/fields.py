"""How a role's value is read from a record: looked up by column or path, and checked to be what
the role needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .records import near_names

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_INTEGER = re.compile(r"-?[0-9]+")
# What tables write where a label is missing.
_MISSING = ("nan", "-nan", "inf", "+inf", "-inf", "<na>", "#n/a", "nat")
_LARGEST = float(np.finfo(np.float32).max)


class Unfit(ValueError):
    """A record that a recipe cannot use; `reason` is what such records are counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def pick(fields: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a path into nested values ('input.-1.content'); of several a
    list ('a,b') or a joined text ('a+b').

    Raises:
        Unfit: there is no such column.
    """
    if column in fields:
        return fields[column]
    if "," in column:
        return [pick(fields, part) for part in column.split(",")]
    if "+" in column:
        return "\n".join(str(pick(fields, part)) for part in column.split("+"))
    value: Any = fields
    for part in column.split("."):
        try:
            # A letter of a text is no value of its own.
            key = part if isinstance(value, (Mapping, str)) else int(part)
            value = value[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise Unfit(
                f"no field {column!r}",
                f"a row needs the field {column!r}, but has "
                f"{', '.join(map(repr, list(fields)[:12])) or 'none'}. "
                f"{near_names(column, map(str, fields))}Name it with --config.data.fields, or, without "
                "a recipe, with --config.data.text and --config.data.label.",
            ) from None
    return value


def read_role(role: str, value: Any) -> Any:
    """The checked value of a role; None where a label is hidden.

    Raises:
        Unfit: it is empty, or of the wrong kind.
    """
    try:
        value = _KINDS.get(role, _text)(role, value)
    except (TypeError, OverflowError) as error:
        raise Unfit(
            f"no {role}", f"{role} is of a kind that cannot be read ({error}): {str(value)[:60]!r}."
        ) from None
    if (letter := _surrogate(value)) is not None:
        raise Unfit(
            f"a lone surrogate in {role}",
            f"{role} needs to be text, but holds half a character ({letter!r}).",
        )
    return value


def is_integer(text: str) -> bool:
    """True for digits with or without a minus sign; of the ASCII ones alone, as `int` reads some
    others and not all.
    """
    return _INTEGER.fullmatch(text) is not None


def number_text(number: float) -> str:
    """The shortest decimal that is read back as this number, without an exponent.

    >>> number_text(1234567.5), number_text(4.0), number_text(float(np.float32(3.8)))
    ('1234567.5', '4', '3.8')
    """
    # Data sets store float32: 3.8 comes as 3.799999952316284.
    single = np.float32(number) if abs(number) <= _LARGEST else number
    exact = single if float(single) == number else number
    return np.format_float_positional(exact, trim="-")


def _surrogate(value: Any) -> str | None:
    """The first lone surrogate in a text, or in the texts of a value."""
    if isinstance(value, str):
        if value.isascii():
            return None
        return next((letter for letter in value if 0xD800 <= ord(letter) <= 0xDFFF), None)
    parts = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, list)):
        return None
    return next((found for part in parts if (found := _surrogate(part)) is not None), None)


def _text(role: str, value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise Unfit(
                f"a {role} that is no text", f"{role} needs to be a text, but {value!r} came."
            )
        value = number_text(value) if isinstance(value, float) else str(value)

    # A table is read line by line; of several right texts the first is the one to write.
    if (
        isinstance(value, list)
        and value
        and all(isinstance(item, str) for item in value)
        and role in ("table", "completion", "output", "code")
    ):
        value = "\n".join(value) if role == "table" else value[0]

    # A chat given where one text is asked for.
    if (
        isinstance(value, list)
        and value
        and all(
            isinstance(item, Mapping) and isinstance(item.get("content"), str) for item in value
        )
    ):
        value = "\n".join(item["content"] for item in value)

    if not isinstance(value, str):
        raise Unfit(
            f"a {role} that is no text",
            f"{role} needs to be a text, but {str(value)[:60]!r} ({type(value).__name__}) came.",
        )
    if not value.strip() and role != "input":
        raise Unfit(
            f"an empty {role}", f"{role} needs a text that is not empty, but {value!r} came."
        )
    return value


def _label(role: str, value: Any) -> str | None:
    """A class as its name: true and false are '1' and '0', '01' is '1'. None where it is hidden."""
    if value is None:
        return None
    if isinstance(value, (bool, int)):
        return str(int(value))
    if isinstance(value, str) and value.strip():
        name = value.strip()
        if name.lower() in _MISSING:
            raise Unfit(
                "a missing label",
                f"a label needs to be a class, but {value!r} came, as tables write what is "
                "missing. If it is a class, give it another name.",
            )
        return str(int(name)) if is_integer(name) and len(name) < 20 else name

    # Sets of several classes a record have lists; those of one class can be used.
    if isinstance(value, list) and len(value) == 1:
        return _label(role, value[0])
    if isinstance(value, list) and value:
        raise Unfit(
            "several labels",
            f"a label needs to be one class, but {len(value)} came: {str(value)[:60]}.",
        )
    raise Unfit(
        "an empty label", f"a label needs to be a class name or a whole number, but {value!r} came."
    )


def _score(role: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise Unfit(
            "a score that is no number", f"a score needs to be a number, but {value!r} came."
        ) from None
    if not abs(number) <= _LARGEST:
        raise Unfit(
            "a score that is no number",
            f"a score needs to be finite in float32, but {value!r} came.",
        )
    return number


def _words(role: str, value: Any) -> list[str]:
    items = value.split() if isinstance(value, str) else value
    if (
        not isinstance(items, list)
        or not items
        or not all(isinstance(item, (str, int)) for item in items)
    ):
        raise Unfit(
            f"no {role}",
            f"{role} needs a list of texts, or texts between spaces, but {str(value)[:60]!r} came.",
        )
    return [str(item) for item in items]


def _answers(role: str, value: Any) -> list[dict[str, Any]]:
    """[{'text', 'start'}], from a text, texts, SQuAD's records or its record of lists; `start` is
    -1 where it is not given.
    """
    if isinstance(value, Mapping):
        texts, starts = value.get("text", ()), value.get("answer_start", ())
        texts, starts = ([texts] if isinstance(texts, str) else list(texts)), list(starts)
    else:
        items = [value] if isinstance(value, (str, Mapping)) else value
        if not isinstance(items, Sequence) or not all(
            isinstance(item, (str, Mapping)) for item in items
        ):
            raise Unfit("no answer", f"answers need to be texts, but {str(value)[:60]!r} came.")
        texts = [item if isinstance(item, str) else item.get("text", "") for item in items]
        starts = [-1 if isinstance(item, str) else item.get("answer_start", -1) for item in items]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise Unfit(
            "an empty answer",
            f"a question needs an answer that is not empty, but {str(value)[:60]!r} came.",
        )
    starts = starts if len(starts) == len(texts) else [-1] * len(texts)
    return [{"text": text, "start": int(start)} for text, start in zip(texts, starts)]


def _choices(role: str, value: Any) -> list[str]:
    """Texts, from a list, a record with 'text', or a record of a text a choice ('A': ..., 'B':
    ...).
    """
    if isinstance(value, Mapping):
        value = value["text"] if isinstance(value.get("text"), list) else list(value.values())
    if (
        not isinstance(value, list)
        or not 2 <= len(value) <= len(LETTERS)
        or not all(isinstance(v, str) and v.strip() for v in value)
    ):
        raise Unfit(
            "no choices",
            f"choices need to be 2 to {len(LETTERS)} texts, but {str(value)[:60]!r} came.",
        )
    return value


def answer_index(choices: list[str], value: Any) -> int | None:
    """The position of the right choice, from an index, a letter (also as in 'c) Atrophy'), or the
    choice's own text; None where it is hidden.

    Raises:
        Unfit: it is none of these.
    """
    if value is None or value == -1:
        return None
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, int) and 0 <= value < len(choices):
        return value
    if isinstance(value, str):
        text = value.strip()
        # First, as a choice may itself be a letter or a number.
        if text in choices:
            return choices.index(text)
        letter, rest = text[:1].upper(), text[1:2]
        if letter in LETTERS[: len(choices)] and letter and (not rest or rest in ").:"):
            return LETTERS.index(letter)
        if is_integer(text) and len(text) < 3 and 0 <= int(text) < len(choices):
            return int(text)
    raise Unfit(
        "an unknown answer",
        f"an answer needs to be one of {len(choices)} choices (index, letter or text), but "
        f"{value!r} came.",
    )


def _messages(role: str, value: Any) -> list[dict[str, str]]:
    names = {"human": "user", "gpt": "assistant", "bot": "assistant"}
    out = []
    if isinstance(value, list):
        for item in value:
            who = item.get("role", item.get("from")) if isinstance(item, Mapping) else None
            content = item.get("content", item.get("value")) if isinstance(item, Mapping) else None
            if isinstance(who, str) and isinstance(content, str) and content.strip():
                out.append({"role": names.get(who, who), "content": content})
    if len(out) < 2 or len(out) != len(value) or out[-1]["role"] != "assistant":
        raise Unfit(
            "no conversation",
            "messages need two or more of role and content, the last an assistant's, but "
            f"{str(value)[:60]!r} came.",
        )
    return out


def _references(role: str, value: Any) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise Unfit(
            "no references", f"references need to be a list of texts, but {str(value)[:60]!r} came."
        )
    return [item for item in items if item.strip()]


_KINDS: dict[str, Callable[[str, Any], Any]] = {
    "label": _label,
    "score": _score,
    "words": _words,
    "tags": _words,
    "answers": _answers,
    "choices": _choices,
    "answer": lambda role, value: value,
    "messages": _messages,
    "references": _references,
}
