"""A store of an older layout, brought up to this one: its runs get the names that they have now.

Up to layout 2 an id was a hash of all settings, now of those that differ from their defaults
(`lora_jax.config.config_hash`). The folders are renamed once, when something is to be written; what
is only read keeps its old names and reads as well.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.config import from_config_dict
from lora_jax.core.json_files import parse_json
from lora_jax.sweeps.files import StoreError, disk, turns, write_json
from lora_jax.sweeps.grid import run_id
from lora_jax.sweeps.index import rebuild
from lora_jax.sweeps.lock import Lock
from lora_jax.sweeps.records import is_run

NAMES = "renamed.json"  # {old name: new name}, kept in the store
_HASH = re.compile(r"-[0-9a-f]{8}$")


def rename_runs(root: Path) -> dict[str, str]:
    """Gives every run of the store its name of today, also in plan.json, halving.json and the
    checkpoints, and says so; {old name: new name} of those that changed.

    A kill leaves whole folders under one name or the other, and the next call goes on. A folder
    whose settings cannot be read, or whose new name is taken, keeps its old one.

    Raises:
        StoreError: a process is at work in a run that has to be renamed, or the disk refuses.
    """
    with disk(root), turns(root / ".renaming_turn"):
        names: dict[str, str] = {}
        for folder in sorted(filter(is_run, root.iterdir())):
            name = _new_name(folder)
            if name not in names.values() and not (root / name).exists():
                names[folder.name] = name

        for name in names:
            if Lock(root / name / "lock").is_held():
                raise StoreError(
                    f"The store {root} was written by an older lora_jax and its runs are to be "
                    f"renamed, but a process is at work in {name}. Wait for it, or stop it."
                )
        if not names and not (root / NAMES).is_file():
            return {}

        # Written before the first folder moves: whoever goes on after a kill needs all of them.
        known = renamed(root) | names
        write_json(root / NAMES, known)
        for old, new in names.items():
            _rename_checkpoints(root / old, old[-8:], new[-8:])
            (root / old).rename(root / new)
        for file in ("plan.json", "halving.json", "tuning.json"):
            _replace_names(root / file, known)
        rebuild(root)

    if names:
        print(
            f"The store {root} was written by an older lora_jax. Its {len(names)} runs have new "
            f"names, for example {new} for {old}; {root / NAMES} has all of them. Nothing else has "
            "changed.",
            file=sys.stderr,
            flush=True,
        )
    return names


def renamed(root: Path) -> dict[str, str]:
    """{old name: new name} of the runs of a store that were renamed."""
    names = _read(root / NAMES)
    return names if isinstance(names, dict) else {}


def _new_name(folder: Path) -> str:
    """The run's id today; its folder's name where that is no id, or where its settings cannot be
    read.
    """
    try:
        name = run_id(from_config_dict(_read(folder / "config.json")))
    except (KeyError, TypeError, ValueError):
        return folder.name
    # Only what ended in a hash was named by this library.
    return name if _HASH.sub("", name) == _HASH.sub("", folder.name) != folder.name else folder.name


def _rename_checkpoints(folder: Path, old: str, new: str) -> None:
    """A checkpoint carries the hash of its run, and is refused by another."""
    for meta in (*folder.glob("checkpoints/*/meta/metadata"), *folder.glob("best/*/meta/metadata")):
        content = _read(meta)
        if isinstance(content, dict) and (content.get("identity") or {}).get("run") == old:
            write_json(meta, content | {"identity": content["identity"] | {"run": new}})


def _replace_names(path: Path, names: Mapping[str, str]) -> None:
    content = _read(path)
    if content is not None:
        write_json(path, _named(content, names))


def _named(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _named(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _read(path: Path) -> Any:
    """The JSON in a file; None where there is none that can be read."""
    try:
        return parse_json(path.read_bytes(), path)
    except (OSError, ValueError):
        return None
