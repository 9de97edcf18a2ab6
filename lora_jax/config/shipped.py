"""The configs that come with the package, by name: `default` is configs/default.py.

They are written in one place, `configs/` beside the package; a wheel holds that folder as
`lora_jax/configs`.
"""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def folder_of_configs() -> Path:
    """The folder of the shipped configs, of a checkout or of an installed wheel.

    Raises:
        FileNotFoundError: the package came without them.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (folder / "default.py").is_file():
            return folder
    raise FileNotFoundError(
        f"The shipped configs need to be in {_PACKAGE / 'configs'} (a wheel) or "
        f"{_PACKAGE.parent / 'configs'} (a checkout), and are in neither. Install lora-jax anew, or "
        "give the path of a config file."
    )


def shipped_configs() -> dict[str, str]:
    """The question of each shipped config, the first paragraph of its docstring on one line, by
    name (`sweeps/rank`). None of them is run.
    """
    folder, found = folder_of_configs(), {}
    for path in sorted(folder.rglob("*.py"), key=lambda path: (len(path.parts), path)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(
            isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body
        ):
            first, _, _ = (ast.get_docstring(tree) or "").partition("\n\n")
            found[path.relative_to(folder).with_suffix("").as_posix()] = " ".join(first.split())
    return found


def path_of_config(name: str) -> Path:
    """The file of a shipped config.

    Raises:
        FileNotFoundError: there is none of this name; near names are listed.
    """
    path = folder_of_configs() / f"{name}.py"
    if name in (names := shipped_configs()):
        return path
    near = difflib.get_close_matches(name, names, 3, 0.4) or list(names)[:5]
    raise FileNotFoundError(
        "A config is a Python file, path/to/file.py or path/to/file.py:arg, or the name of a "
        f"shipped one, name or name:arg, but there is no {name!r}. Nearest: "
        f"{', '.join(map(repr, near))}. `lora-jax configs` lists all."
    )
