"""Spread a memory budget over the layers of a model: the bits of each base weight and the rank of
each adapter, chosen by what a trained run loses without them.

  lora-jax train --config default --config.lora.rank=16 --config.out=runs/ground
  lora-jax allocate runs/ground/RUN --budget nf4/4 --formats nf3,nf4,int8 --ranks 1,2,4,8
      as many bytes as nf4 with rank 4 everywhere
  lora-jax allocate runs/ground/RUN --budget 6.5 --budget nf3/4 --out runs/ground/allocation.json

RUN is a finished run of method lora, with layers one by one (model.scan=false). Each weight is
rounded, and each adapter cut to a lower rank, by itself, and the loss on training examples is
measured again; the allocation with the smallest sum of rises is found by an integer programme. What
is printed last are the settings of runs with it, and the axis of a sweep that compares them with
one format and rank for all at the same bytes. Train them: a forecast is no result.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import progress
from rich.console import Console
from rich.table import Table

from lora_jax.commands.shared import print_table
from lora_jax.core.escapes import in_terminal

if TYPE_CHECKING:
    from lora_jax.analysis.allocation import Choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax allocate`."""
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run of method lora")
    parser.add_argument(
        "--budget", action="append", required=True, metavar="MB|FORMAT/RANK",
        help="bytes of quantised weights and factors, in MB of 1e6, or as many as one format and rank for all take; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--formats", default="nf3,nf4,int8", help="to choose from, none among them (%(default)s)"
    )
    parser.add_argument("--ranks", default="1,2,4,8", help="to choose from (%(default)s)")
    parser.add_argument("--split", default="train", help="of the calibration examples (train)")
    parser.add_argument("--examples", type=int, default=256, help="how many of them (256)")
    parser.add_argument("--out", metavar="FILE.json", help="keeps what was measured and chosen")


def run(arguments: argparse.Namespace) -> int:
    """Measures, solves, and prints a table for each budget and the settings of its run."""
    from lora_jax.analysis.allocation import allocate, bytes_of, rise_of, settings_of
    from lora_jax.analysis.sensitivity import choices, measure
    from lora_jax.sweeps.files import write_json
    from lora_jax.training.saved import load_run

    formats, ranks = arguments.formats.split(","), _ranks(arguments.ranks)
    loaded = load_run(arguments.run)
    bar = functools.partial(
        progress.track, description="weights", console=Console(stderr=True), transient=True
    )
    changes = measure(
        loaded, formats=formats, ranks=ranks, split=arguments.split, examples=arguments.examples,
        track=bar,
    )  # fmt: skip
    found = choices(changes)

    points, kept = [], []
    for text in arguments.budget:
        like, budget = _read_budget(text, found)
        chosen = allocate(found, budget)
        settings = settings_of(chosen, f"allocated-{budget / 1e6:.2f}MB")
        print_table(_table(text, chosen))
        print(f"{bytes_of(chosen):,} of {budget:,} bytes, forecast rise {rise_of(chosen):.4f} nats")
        print(" ".join(f"--config.{key}={value!r}" for key, value in settings.items()))
        points.append(settings)
        if like is not None:
            print(f"{text} for all: forecast rise {rise_of(like):.4f} nats in as many bytes")
            points.append(settings_of(like, ""))
        kept.append({"budget": text, "bytes": bytes_of(chosen), "settings": settings})

    keys = list(points[0])
    values = (f"({', '.join(repr(point[key]) for key in keys)})" for point in points)
    print(f"\nas an axis of a sweep:\n{', '.join(keys)} = {', '.join(values)}")
    if arguments.out:
        rows = [dataclasses.asdict(change) for change in changes]
        write_json(Path(arguments.out), {"measured": rows, "chosen": kept})
        print(f"written: {arguments.out}")
    return 0


def _ranks(text: str) -> list[int]:
    if not all(one.strip().isdigit() for one in text.split(",")):
        raise ValueError(f"--ranks needs whole numbers, such as 1,2,4, got {text!r}.")
    return [int(one) for one in text.split(",")]


def _read_budget(
    text: str, choices: Mapping[str, Sequence[Choice]]
) -> tuple[dict[str, Choice] | None, int]:
    """What one format and rank for all choose, if the budget is theirs, and the bytes of it."""
    from lora_jax.analysis.allocation import bytes_of, uniform

    format, slash, rank = text.partition("/")
    if slash and rank.isdigit():
        like = uniform(choices, format, int(rank))
        return like, bytes_of(like)
    try:
        megabytes = float(text)
    except ValueError:
        megabytes = 0.0
    if not 0 < megabytes < 1e9:
        raise ValueError(
            f"--budget needs megabytes, such as 6.5, or a format and a rank, such as nf4/4, got "
            f"{text!r}."
        )
    return None, round(megabytes * 1e6)


def _table(budget: str, chosen: Mapping[str, Choice]) -> Table:
    table = Table(title=in_terminal(f"budget {budget}"))
    for name in ("weight", "format", "rank", "kB", "forecast rise, nats"):
        table.add_column(name, justify="left" if name == "weight" else "right")
    for path, choice in chosen.items():
        table.add_row(
            in_terminal(path), choice.format or "as it is", str(choice.rank or "none"),
            f"{choice.bytes / 1e3:.1f}", f"{choice.rise:.5f}",
        )  # fmt: skip
    return table
