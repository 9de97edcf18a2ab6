"""What commands share: a config's arguments, the settings shown when a run starts, how tables are
printed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lora_jax.config import Config
    from lora_jax.sweeps.runner import Outcome

WIDTH = 100  # columns of a file or a pipe, which has no width of its own


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds --config, which also takes single settings."""
    config: Any = parser.add_argument(
        "--config", required=True, metavar="FILE.py[:ARG]|NAME[:ARG]",
        help="a config file or a shipped config's name (lora-jax configs), with an argument for its get_config; --config.GROUP.KEY=VALUE changes one setting of it",
    )  # fmt: skip
    config.completer = _config_names


def _config_names(prefix: str, **_: object) -> list[str]:
    """What the Tab key offers."""
    from glob import glob

    from lora_jax.config.shipped import shipped_configs

    return [name for name in (*shipped_configs(), *glob(f"{prefix}*")) if name.startswith(prefix)]


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds what commands that train take: --config, --hosts, and how much they print."""
    add_config(parser)
    add_hosts(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="no settings, no progress bar")
    shown.add_argument(
        "--verbose",
        action="store_true",
        help="print all settings at the start, not only those that differ from the defaults",
    )


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """Adds --hosts, of a run on the devices of several processes."""
    parser.add_argument(
        "--hosts", metavar="HOST:PORT,COUNT,NUMBER|slurm",
        help="this is process NUMBER (from 0 on) of COUNT that run the same command, on one mesh; process 0 is at HOST:PORT",
    )  # fmt: skip


def add_executor(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds --executor and its options."""
    parser.add_argument("--executor", metavar="NAME", help=what)
    parser.add_argument(
        "--executor-option", action="append", default=[], metavar="KEY=VALUE",
        help="of ray or slurm, such as timeout_min=600",
    )  # fmt: skip


def check_executor_options(arguments: argparse.Namespace) -> None:
    """Raises ValueError if there are options of an executor, and none that would take them."""
    alone = arguments.executor is None and getattr(arguments, "workers", None) is None
    if arguments.executor_option and alone:
        raise ValueError(
            f"--executor-option {arguments.executor_option[0]} is of an executor, and without "
            "--executor this process trains. Say which: --executor slurm, or ray."
        )


def on_workers(
    config: Config,
    arguments: argparse.Namespace,
    runs: Sequence[Config] = (),
    score_test: bool = True,
    *,
    workers: int = 1,
) -> Outcome:
    """`run_on`, as the command says. Workers pass over what is done, whichever `runs` are meant."""
    from lora_jax.sweeps.executors.launching import run_on

    options = dict(option.partition("=")[::2] for option in arguments.executor_option)
    if "" in options.values():
        raise ValueError(f"--executor-option reads KEY=VALUE, got {arguments.executor_option}.")
    return run_on(
        config,
        arguments.executor or "processes",
        workers,
        options=options,
        score_test=score_test,
        command=(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),),
        say=partial(print, file=sys.stderr, flush=True),
    )


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


def show_settings(config: Config, *, verbose: bool = False) -> None:
    """Prints the settings that differ from the defaults to standard error, one group a line; with
    `verbose` all, and those marked with *.
    """
    how = (
        "* differs from the default" if verbose else "that differ from the defaults; --verbose: all"
    )
    print(f"settings ({how}; change any with --config.GROUP.KEY=VALUE)", file=sys.stderr)
    print("\n".join(settings_lines(config, every=verbose)), file=sys.stderr, flush=True)


def settings_lines(config: Config, *, every: bool = False) -> list[str]:
    """A line for each group of settings that differ from the defaults, or of `every` one with a *
    at those; at most 100 columns each, where single values allow it.
    """
    from lora_jax.config import describe

    groups: dict[str, list[str]] = {}
    for key, value, changed in describe(config):
        group, _, leaf = key.rpartition(".")
        if changed or every:
            mark = "*" if changed and every else ""
            groups.setdefault(group, []).append(f"{mark}{leaf}={_short(value)}")
    if not groups:
        return ["  none: every setting has its default"]
    return [
        line
        for group, settings in groups.items()
        for line in textwrap.wrap(
            " ".join(settings), WIDTH, initial_indent=f"  {group or 'config':<20} ",
            subsequent_indent=" " * 23, break_long_words=False, break_on_hyphens=False,
        )
    ]  # fmt: skip


def _short(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def print_table(table: RenderableType) -> None:
    """Prints to standard output, in at most 100 columns where that is no terminal. What is too long
    for its column is folded: nothing is cut off.
    """
    if isinstance(table, Table):
        for column in table.columns:
            column.overflow = "fold"
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)


def print_parts(parts: Iterable[Table | str]) -> None:
    """Prints tables and lines, one after the other."""
    for part in parts:
        if isinstance(part, str):
            print(part)
        else:
            print_table(part)
