"""What a run needs of a device's memory, what fits where, and the cheapest change that makes it
fit: from config.json alone, in seconds, without weights, data or a GPU.

  lora-jax plan llama-65b --method qlora --rank 64 --batch 1x512 --device a6000-48
  lora-jax plan FOLDER-WITH-CONFIG.JSON --method lora --rank 16 --batch 8x1024
  lora-jax plan llama-65b --method qlora --batch 16x512 --mesh fsdp=8 --device rtx4090-24
  lora-jax plan rotten_tomatoes:lora --config.model.remat=true

A model is a folder with config.json (one that is quantised with its files: the codes count as they
are stored), one that is on this machine, or a size that papers name. Of a
language model blocks are recomputed, products and words in bfloat16, unless --config says
otherwise; of a config its own settings count, and of a sweep those that no axis changes.

The peak is XLA's own account of the training step, compiled by shapes for the device that is here;
the parts are arithmetic. Nothing is fetched, loaded or trained.

Of a mesh (--mesh, or config.mesh of a file) all bytes are of each device, and a second table says
what the devices receive of each other in a step, counted in the compiled program. Where jax sees
fewer devices than the mesh has, a process is started that takes this CPU for so many.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lora_jax.commands.shared import print_table
from lora_jax.core.escapes import in_terminal

if TYPE_CHECKING:
    from lora_jax.analysis.devices import Device
    from lora_jax.analysis.memory_plan import Change, Plan
    from lora_jax.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax plan`."""
    # Its name lets single settings be given, as --config.GROUP.KEY=VALUE.
    parser.add_argument(
        "config",
        metavar="MODEL-OR-CONFIG",
        help="a folder with config.json, a known size such as llama-65b, FILE.py[:ARG], or a shipped config's NAME[:ARG]",
    )
    parser.add_argument("--method", help="full, lora, qlora (in nf4) or another config.method")
    parser.add_argument("--rank", type=int, help="config.lora.rank")
    parser.add_argument(
        "--batch",
        metavar="ROWSxTOKENS",
        help="config.train.batch_size and config.data.max_length, such as 1x512",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="what has to fit where, such as h100-80, a6000-48 or rtx4090-24: how to make it fit",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="several devices, such as fsdp=8 or data=2,fsdp=2,model=2 (config.mesh); they need not be here",
    )
    parser.add_argument(
        "--arithmetic",
        action="store_true",
        help="compile nothing: an upper estimate of the peak, at once",
    )


def run(arguments: argparse.Namespace) -> int:
    """Plans, and prints tables."""
    from lora_jax.analysis.devices import DEVICES
    from lora_jax.analysis.memory_plan import changes, plan

    device = None if arguments.device is None else _device(arguments.device)
    made = plan(config_of(arguments), compiled=not arguments.arithmetic)
    print(_words(made.config))
    print_table(parts_table(made))
    if made.collectives:
        print_table(collectives_table(made))
    print_table(devices_table(made, list(DEVICES.items())))
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)
    if device is not None:
        print_changes(made, device, changes(made, device))
    return 0


def config_of(arguments: argparse.Namespace) -> Config:
    """The config that is planned: a file's, or of a model the usual one; with the options on top."""
    from lora_jax.config import from_config_dict, load_config, with_overrides
    from lora_jax.config.load import to_dict
    from lora_jax.config.shipped import shipped_configs

    spec, asked = arguments.config, _overrides(arguments)
    if spec.endswith(".py") or ".py:" in spec or spec.partition(":")[0] in shipped_configs():
        return load_config(spec, [*asked, *arguments.overrides])
    usual = _usual(spec, arguments.method)
    if "quant" in usual:
        asked = [one for one in asked if not one.startswith("config.quant.format=")]
    settings = to_dict(from_config_dict(usual))
    return with_overrides(settings, [*asked, *arguments.overrides])


def _usual(name: str, method: str | None) -> dict[str, Any]:
    from lora_jax.analysis.memory_plan import held_in, sizes_of
    from lora_jax.io.families import FAMILIES
    from lora_jax.io.weights import family_name

    # Codes that files hold are the base as it is.
    stored = next(iter(held_in(name).values()), None)
    base: dict[str, Any] = {}
    if stored is not None and method in (None, "qlora"):
        spec = dataclasses.asdict(stored.spec)
        base = {"method": "qlora", "quant": {key: spec[key] for key in spec if key != "kernel"}}
    if FAMILIES[family_name(sizes_of(name))].kind == "encoder":
        return {"model": {"name": name}} | base
    # What is trained itself is kept in float32.
    base_dtype = "float32" if method in ("full", "top_layers") else "bfloat16"
    model = dict(name=name, remat=True, compute_dtype="bfloat16", base_dtype=base_dtype)
    return {
        "model": model,
        "data": {"task": "completion", "max_length": 512},
        "train": {"batch_size": 1},
    } | base


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """What --method, --rank, --batch and --mesh say, as settings."""
    said = []
    if arguments.method is not None:
        said.append(f"config.method={arguments.method}")
        said.append(f"config.quant.format={'nf4' if arguments.method == 'qlora' else 'none'}")
    if arguments.rank is not None:
        said.append(f"config.lora.rank={arguments.rank}")
    if arguments.batch is not None:
        found = re.fullmatch(r"(\d+)x(\d+)", arguments.batch)
        if found is None:
            raise ValueError(f"--batch reads ROWSxTOKENS, such as 1x512, got {arguments.batch!r}.")
        said.append(f"config.train.batch_size={found[1]}")
        said.append(f"config.data.max_length={found[2]}")
    if arguments.mesh is not None:
        axes = re.findall(r"(data|fsdp|model)=(\d+)", arguments.mesh)
        if ",".join(map("=".join, axes)) != arguments.mesh:
            raise ValueError(
                "--mesh reads data=N, fsdp=N and model=N with commas between them, such as "
                f"data=2,fsdp=4; got {arguments.mesh!r}."
            )
        said += [f"config.mesh.{axis}={size}" for axis, size in axes]
    return said


def _device(name: str) -> Device:
    from lora_jax.analysis.devices import DEVICES

    if name not in DEVICES:
        raise ValueError(f"--device is one of {', '.join(DEVICES)}, got {name!r}.")
    return DEVICES[name]


def parts_table(plan: Plan) -> Table:
    """Bytes by what they are for, and the peak."""
    found, memory = plan.footprint, plan.memory
    unit, size_of = ("GB", 1e9) if plan.peak > 1e9 else ("MB", 1e6)
    shown = lambda size: f"{size / size_of:,.2f}"
    devices = plan.config.mesh.devices
    table = Table("of a training step" + (", on each device" if devices > 1 else ""), unit)
    table.columns[1].justify = "right"
    for words, size in (
        ("codes of quantised weights", found.codes),
        ("their scales", found.scales),
        ("embeddings", found.embeddings),
        ("output head", found.head),
        ("other frozen weights", found.other),
        ("what is trained", found.factors),
        ("the optimiser's moments", found.optimiser),
    ):
        table.add_row(words, shown(size))
    if found.away:
        table.add_row("moments in the host's memory, not counted", shown(found.away))
    arguments = found.arguments if memory is None else memory.arguments
    table.add_row("arguments, in all", shown(arguments), end_section=True)
    table.add_row("gradients", shown(found.gradients))
    table.add_row("activations", shown(found.activations + found.scores))
    table.add_row("one layer's dense weight", shown(found.dense), end_section=True)
    if memory is not None:
        table.add_row("temporaries, compiled", shown(memory.temporaries + memory.new_results))
        table.add_row("peak, compiled", shown(plan.peak), style="bold")
    table.add_row("peak by arithmetic", shown(found.total))
    table.caption = (
        f"{unit} of {'1e9' if unit == 'GB' else '1e6'} bytes; planned in {plan.seconds:.0f} s"
    )
    return table


def collectives_table(plan: Plan) -> Table:
    """What each device of a mesh receives of the others in a step."""
    table = Table(
        "collective", "of", "among", "times a step", "received, MB",
        caption="bytes that each device receives in a step, by rings; loops are counted through",
    )  # fmt: skip
    for column in (2, 3, 4):
        table.columns[column].justify = "right"
    for one in plan.collectives:
        sizes = f"{one.times:,}", f"{one.size / 1e6:,.2f}"
        table.add_row(one.kind, one.dtype, str(one.devices), *sizes)
    total = sum(one.size for one in plan.collectives)
    table.add_row("all", "", "", "", f"{total / 1e6:,.2f}", style="bold")
    return table


def _words(config: Config) -> str:
    train, quant = config.train, config.quant
    method = config.method if config.method != "qlora" else f"qlora {quant.format}"
    parts = f" in {train.accumulate} parts" if train.accumulate > 1 else ""
    rank = f", rank {config.lora.rank}" if config.method in ("lora", "qlora") else ""
    blocks = "recomputed" if config.model.remat else "kept"
    axes = {axis: getattr(config.mesh, axis) for axis in ("data", "fsdp", "model")}
    mesh = ", ".join(f"{axis} {size}" for axis, size in axes.items() if size > 1)
    mesh = mesh and f", on {config.mesh.devices} devices ({mesh})"
    return (
        f"{config.model.name}: {method}{rank}, {train.batch_size} x {config.data.max_length} tokens"
        f"{parts}, {config.optim.name}, blocks {blocks}, {config.model.compute_dtype}{mesh}"
    )


def devices_table(plan: Plan, devices: Sequence[tuple[str, Device]]) -> Table:
    """What fits on which device; of a mesh, on each of its devices."""
    from lora_jax.analysis.devices import USABLE

    several = f"{plan.config.mesh.devices} of each; " if plan.config.mesh.devices > 1 else ""

    table = Table(
        "device", "memory, GB", "share of it", "fits",
        caption=f"{several}fits: in {USABLE:.0%} of its memory, which needs XLA_PYTHON_CLIENT_MEM_FRACTION "
        f"of {USABLE:g}; jax takes 75 % by itself",
    )  # fmt: skip
    for column in (1, 2):
        table.columns[column].justify = "right"
    for name, device in devices:
        share = plan.peak / device.memory
        fits = "no" if not plan.fits(device) else "yes" if share <= 0.75 else "yes, above 75 %"
        table.add_row(f"{name}: {device.name}", _gb(device.memory), f"{share:.0%}", fits)
    return table


def print_changes(plan: Plan, device: Device, found: Sequence[Change]) -> None:
    """Says whether a plan fits, and what makes it fit."""
    if plan.fits(device):
        print(f"It fits on {device.name} as it is.")
        return
    table = Table("setting", "peak, GB", "less by", "fits", title=f"what would fit {device.name}")
    for change in found:
        settings = " ".join(f"--config.{one}" for one in change.settings)
        peak, fits = change.plan.peak, change.plan.fits(device)
        saved = _gb(plan.peak - peak)
        table.add_row(in_terminal(settings), _gb(peak), saved, "yes" if fits else "no")
    print_table(table)
    if not any(change.plan.fits(device) for change in found):
        print(
            f"None of these makes it fit on {device.name}: shorter texts, a larger device, or more "
            "of them (--mesh)."
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f}"
