"""Values of a record's roles: looked up by column or path, and checked to be what a role needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .records import near_names
from .tasks import LETTERS, Recipe


class Unfit(ValueError):
    """A row that a recipe cannot use; `reason` is what such rows are counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def pick(fields: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a path into nested values ('input.-1.content'); of several a
    list ('a,b') or a joined text ('a+b').

    Raises:
        Unfit: there is no such column.
    """
    if "," in column and column not in fields:
        return [pick(fields, part) for part in column.split(",")]
    if "+" in column and column not in fields:
        return "\n".join(str(pick(fields, part)) for part in column.split("+"))
    if column in fields:
        return fields[column]
    value: Any = fields
    for part in column.split("."):
        try:
            value = value[part] if isinstance(value, Mapping) else value[int(part)]
        except (KeyError, IndexError, ValueError, TypeError):
            raise Unfit(
                f"no field {column!r}",
                f"a row needs the field {column!r}, but has "
                f"{', '.join(map(repr, list(fields)[:12])) or 'none'}. "
                f"{near_names(column, map(str, fields))}Name it with --config.data.fields.",
            ) from None
    return value


def values_of(
    recipe: Recipe, columns: Mapping[str, str], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """The checked values of every role of a recipe; roles without a label have None (hidden
    labels).

    Raises:
        Unfit: a field is missing, empty or of the wrong kind.
    """
    out: dict[str, Any] = {}
    for role, default in recipe.fields.items():
        column = columns.get(role) or default
        try:
            value = pick(fields, column)
        except Unfit:
            if role in recipe.optional and role not in columns:
                continue
            raise
        if value is None and role in recipe.optional:
            continue
        out[role] = _KINDS.get(role, _text)(role, value)
    if "choices" in out:
        out["answer"] = _answer_index(out["choices"], out["answer"])
    if "tags" in out and out["tags"] is not None and len(out["words"]) != len(out["tags"]):
        raise Unfit(
            "another number of tags",
            f"{len(out['words'])} words need as many tags, but {len(out['tags'])} came.",
        )
    if recipe.head == "span" and (
        wrong := [a for a in out["answers"] or () if a["text"] not in out["context"]]
    ):
        raise Unfit(
            "an answer outside its context",
            f"the answer {wrong[0]['text'][:60]!r} does not stand in the context.",
        )
    return out


def _text(role: str, value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = f"{value:g}" if isinstance(value, float) else str(value)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(item, str) for item in value)
        and role in ("table", "completion", "output", "code")
    ):
        value = "\n".join(value) if role == "table" else value[0]
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
    if value is None or value == -1:
        return None
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (int, str)) and str(value).strip():
        return str(value).strip()
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
    except (TypeError, ValueError):
        raise Unfit(
            "a score that is no number", f"a score needs to be a number, but {value!r} came."
        ) from None
    if not math.isfinite(number):
        raise Unfit("a score that is no number", f"a score needs to be finite, but {value!r} came.")
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
    texts = [text for text in texts if isinstance(text, str)]
    if not texts or not all(text.strip() for text in texts):
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


def _answer_index(choices: list[str], value: Any) -> int | None:
    """The position of the right choice, from an index, a letter (also as in 'c) Atrophy'), or the
    choice's own text.
    """
    if value is None or value == -1:
        return None
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, int) and 0 <= value < len(choices):
        return value
    if isinstance(value, str):
        text = value.strip()
        if text in choices:
            return choices.index(text)
        letter, rest = text[:1].upper(), text[1:2]
        if letter in LETTERS[: len(choices)] and letter and (not rest or rest in ").:"):
            return LETTERS.index(letter)
        if text.isdigit() and int(text) < len(choices):
            return int(text)
    raise Unfit(
        "an unknown answer",
        (
            f"an answer needs to be one of {len(choices)} choices (index, letter or text), but "
            f"{value!r} came."
        ),
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
            (
                "messages need two or more of role and content, the last an assistant's, but "
                f"{str(value)[:60]!r} came."
            ),
        )
    return out


def _references(role: str, value: Any) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise Unfit(
            "no references", f"references need to be a list of texts, but {str(value)[:60]!r} came."
        )
    return [item for item in items if item.strip()]


_KINDS = {
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
