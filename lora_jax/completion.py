"""What the Tab key gives after `lora-jax`: commands, their options, shipped configs, files."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from typing import Any

from lora_jax.cli import COMMANDS, split_name
from lora_jax.core.extras import needs


def complete() -> None:
    """Answers the shell, which argcomplete's function has asked for words, and ends the process."""
    with needs("completion"):
        import argcomplete

    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    argcomplete.autocomplete(parser_for(line.split()[1:]), always_complete_options="long")


def parser_for(words: Sequence[str]) -> argparse.ArgumentParser:
    """A parser of all commands, of which the one that these words name has its options: the others
    are not imported.
    """
    root = argparse.ArgumentParser("lora-jax", allow_abbrev=False)
    groups: dict[str, Any] = {"": root.add_subparsers()}
    for name in COMMANDS:
        family, _, kind = name.rpartition(" ")
        if family not in groups:
            groups[family] = groups[""].add_parser(family).add_subparsers()
        parser = groups[family].add_parser(kind, help=COMMANDS[name])
        if words and split_name(words)[0] == name:
            parser.add_argument("--debug", action="store_true")
            module = importlib.import_module(f"lora_jax.commands.{name.replace(' ', '_')}")
            module.add_arguments(parser)
    return root
