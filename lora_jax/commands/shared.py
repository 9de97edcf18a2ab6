"""What commands share: a config's arguments, the settings shown when a run starts, how tables are
printed.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_jax.config import Config


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds --config, which also takes single settings."""
    parser.add_argument(
        "--config", required=True, metavar="FILE.py[:ARG]|NAME[:ARG]",
        help="a config file or a shipped config's name (lora-jax configs), with an argument for its get_config; --config.GROUP.KEY=VALUE changes one setting of it",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no settings, no progress bar")


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """Adds --hosts, of a run on the devices of several processes."""
    parser.add_argument(
        "--hosts", metavar="HOST:PORT,COUNT,NUMBER|slurm",
        help="this is process NUMBER (from 0 on) of COUNT that run the same command, on one mesh; process 0 is at HOST:PORT",
    )  # fmt: skip


def on_hosts(arguments: argparse.Namespace, config: Config, act: Callable[[], int]) -> int:
    """What `act` gives in process 0; in the other processes of the same command, which take part in
    what it trains, 0.
    """
    from lora_jax.core.hosts import is_leader, seat_of
    from lora_jax.training.following import agreement, follow, one_of

    if (seat := seat_of(arguments.hosts)) is None:
        return act()
    with one_of(seat, agreement(config)):
        if is_leader():
            return act()
        follow()
    return 0


def read_config(arguments: argparse.Namespace) -> Config:
    """The checked config of the command line."""
    from lora_jax.config import load_config

    return load_config(arguments.config, arguments.overrides)


def show_settings(config: Config) -> None:
    """Prints every setting, one group a line, those that differ from the defaults marked with *."""
    from lora_jax.config import describe

    groups: dict[str, list[str]] = {}
    for key, value, changed in describe(config):
        group, _, leaf = key.rpartition(".")
        groups.setdefault(group, []).append(f"{'*' if changed else ''}{leaf}={_short(value)}")
    print(
        "settings (* differs from the default; change any with --config.GROUP.KEY=VALUE)",
        file=sys.stderr,
    )
    for group, settings in groups.items():
        print(f"  {group or 'config':<20} {' '.join(settings)}", file=sys.stderr)


def _short(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


WIDTH = 100  # columns of a file or a pipe, which has no width of its own


def print_table(table: RenderableType) -> None:
    """Prints to standard output, in at most 100 columns where that is no terminal. What is too long
    for its column is folded: nothing is cut off.
    """
    if isinstance(table, Table):
        for column in table.columns:
            column.overflow = "fold"
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)
