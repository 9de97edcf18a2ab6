"""JSON out of files that anybody may have written: whatever is wrong is a ValueError that names the
file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_DEEPEST = 100


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these members.

    Raises:
        ValueError: two have one name.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"an object has {twice!r:.80} more than once")
    return found


_STRICT = json.JSONDecoder(object_pairs_hook=_object)


def loads(text: str) -> Any:
    """The value that a text stands for, as `json.loads` has it.

    Raises:
        ValueError: as there, and where an object has one name twice: of two values readers take
            either. RecursionError: it is nested too deeply.
    """
    return _STRICT.decode(text)


def parse_json(content: bytes | str, where: object) -> Any:
    """The value that a text stands for.

    Args:
        where: what the text is, for the error: a path, or a path with a line.

    Raises:
        ValueError: it is no JSON in UTF-8, has an object with one name twice, of which readers take
            either, is nested more than 100 deep, has numbers of thousands of digits, or holds half
            of a surrogate pair, which no text file can.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = loads(text)
        _check_depth(value)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}). Fetch it, or save it, again.") from None


def _check_depth(value: Any) -> None:
    """Raises ValueError for what those who walk through it would need too many calls for."""
    level = [[value]]
    for _ in range(_DEEPEST + 1):
        groups = (item.values() if type(item) is dict else item for item in level)
        level = [item for items in groups for item in items if type(item) in (dict, list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {_DEEPEST} deep")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: there is no such file. ValueError: as `parse_json`, or it is no object.
    """
    value = parse_json(path.read_bytes(), path)
    if not isinstance(value, dict):
        raise ValueError(
            f"{path} needs a JSON object, and is not a JSON object. Fetch it, or save it, again."
        )
    return value


def save_json(path: Path, value: Any, **options: Any) -> None:
    """Writes JSON for people; `options` are those of json.dumps.

    Raises:
        OSError: the disk is full or the folder cannot be written; the text names the file.
    """
    try:
        path.write_text(json.dumps(value, indent=2, **options) + "\n", encoding="utf-8")
    except OSError as error:
        raise OSError(
            f"{path} could not be written: {error.strerror or error}. Free some space, or choose "
            "another folder."
        ) from error
