"""Show a sweep while it runs: what is running, done and failed, the best so far, and the time left.

  lora-jax watch runs/default
  lora-jax watch runs/default --once

It only reads, from any terminal or machine that sees the folder, and ends when every planned run
has ended. Ctrl-C ends it before.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax watch`."""
    parser.add_argument("store", metavar="STORE", help="the folder of a sweep (config.out)")
    parser.add_argument("--once", action="store_true", help="print the state and end")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="how often to look (default: 2)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Shows the store until its sweep is over."""
    import time

    from rich.console import Console
    from rich.live import Live

    from lora_jax.commands.shared import print_table
    from lora_jax.sweeps.watch import frame, is_over, look

    if not arguments.every > 0:
        raise ValueError(f"--every needs a number of seconds above 0, got {arguments.every}.")
    console = Console()
    seen = look(arguments.store)
    if arguments.once or not console.is_terminal:
        print_table(frame(seen))
        return 0
    with Live(frame(seen), console=console, refresh_per_second=4, screen=False) as live:
        while not is_over(seen):
            time.sleep(arguments.every)
            seen = look(arguments.store)
            live.update(frame(seen))
    return 0
