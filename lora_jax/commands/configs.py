"""List the configs that come with the package, or show what one says of itself.

  lora-jax configs
  lora-jax configs sweeps/rank

Each runs by its name, from an installed wheel as from a checkout: `lora-jax sweep --config
sweeps/rank:table6`. The last line of one that is shown is its file, to be copied for a config of
your own (with common.py beside it, where it imports that).
"""

from __future__ import annotations

import argparse
import ast

_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax configs`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of them, such as default")


def run(arguments: argparse.Namespace) -> int:
    """Prints a line a config, or the docstring and the file of one."""
    from lora_jax.config.shipped import path_of_config, shipped_configs

    if arguments.name is None:
        names = shipped_configs()
        width = max(map(len, names)) + 2
        for name, question in names.items():
            print(f"{name:<{width}}{_cut(question, _WIDTH - width)}")
        return 0
    path = path_of_config(arguments.name)
    print(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))
    print(f"\nfile: {path}")
    return 0


def _cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    return text[: width - 4].rpartition(" ")[0].rstrip(",:;") + " ..."
