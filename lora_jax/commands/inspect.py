"""Show what something is: a model's sites and targets, a run's settings, state and scores, what an
adapter covers, what a quantised checkpoint holds and lost by layer.

  lora-jax inspect minilm-l6
  lora-jax inspect minilm-l6 --pattern 'ffn=layers(_\\d+)?/mlp/.*/kernel'
  lora-jax inspect runs/default/lora-fp32-r4-all_linear-s0-1a2b3c4d
  lora-jax inspect runs/default/lora-fp32-r4-all_linear-s0-1a2b3c4d/adapter
  lora-jax inspect peft_folder --model minilm-l6
  lora-jax inspect runs/minilm-nf4

What it is follows from the files: config.json beside status.json is a run, adapter.safetensors or
PEFT's adapter_config.json an adapter, quantized.safetensors what `lora-jax quantize` wrote, and
anything else is a model (a folder, a known name, a Hugging Face id or a .gguf file).

Of a model, the named sets of targets, what each takes, and its sites are shown, and the formats and
bytes of weights that another tool quantised (bitsandbytes, GPTQ, AWQ, NVFP4); no weight is read. Of
an adapter, ours or PEFT's, the rank at every site and layer, its base, and sites that change
nothing. Of a quantised checkpoint the whole file is read, so that its checksum is verified; no
weight is dequantised.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from lora_jax.commands.shared import print_parts, print_table
from lora_jax.core.escapes import in_terminal

if TYPE_CHECKING:
    from lora_jax.analysis.quantisation import Loss
    from lora_jax.core.quantize import QuantizedArray
    from lora_jax.io.stored_model import StoredModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax inspect`."""
    parser.add_argument(
        "what",
        metavar="MODEL|RUN|ADAPTER",
        help="a folder, a known name such as minilm-l6, a Hugging Face id, or a .gguf file",
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--adapter", action="store_true", help="take it for an adapter")
    kinds.add_argument("--targets", action="store_true", help="take it for a model")
    parser.add_argument(
        "--pattern",
        action="append",
        default=[],
        metavar="[NAME=]REGEX",
        help="of a model: targets of your own beside the named ones",
    )
    parser.add_argument(
        "--model", help="the base of a PEFT adapter: a folder, a known name or a Hugging Face id"
    )


def run(arguments: argparse.Namespace) -> int:
    """Says what it is, and prints its tables."""
    show = _which(arguments)
    if arguments.pattern and show is not _show_model:
        raise ValueError(
            f"--pattern goes with a model, whose sites it names, and {arguments.what} is none."
        )
    show(arguments)
    return 0


def _which(arguments: argparse.Namespace) -> Callable[[argparse.Namespace], None]:
    """What shows this kind of thing.

    Raises:
        FileNotFoundError, ValueError: a folder that is none of them.
    """
    folder = Path(arguments.what).expanduser()
    there = lambda *names: any((folder / name).is_file() for name in names)
    if arguments.adapter or arguments.targets:
        return _show_adapter if arguments.adapter else _show_model
    if there("config.json") and there("status.json"):
        return _show_run
    if there("adapter.safetensors", "adapter_config.json"):
        return _show_adapter
    if there("quantized.safetensors"):
        return _show_checkpoint
    if there("store.json", "index.jsonl"):
        raise ValueError(
            f"{folder} is the folder of a sweep: lora-jax report {folder} shows its runs, lora-jax "
            f"watch {folder} how far it is, and lora-jax inspect {folder}/RUN one of them."
        )
    if folder.is_dir() and not there("config.json") and not any(folder.glob("*.gguf")):
        names = sorted(entry.name for entry in folder.iterdir())[:6]
        raise FileNotFoundError(
            f"{folder} needs to be a run (config.json and status.json), an adapter "
            "(adapter.safetensors or adapter_config.json), what lora-jax quantize wrote "
            "(quantized.safetensors) or a model (config.json and its weights, or a .gguf file). In "
            f"it: {', '.join(names) or 'nothing'}."
        )
    return _show_model


def _show_adapter(arguments: argparse.Namespace) -> None:
    from lora_jax.commands.adapter import describe

    print(describe(arguments.what, arguments.model))


def _show_run(arguments: argparse.Namespace) -> None:
    from lora_jax.commands.run_folder import described

    print_parts(described(Path(arguments.what)))


def _show_checkpoint(arguments: argparse.Namespace) -> None:
    from lora_jax.analysis.quantisation import Loss
    from lora_jax.core.paths import flatten
    from lora_jax.core.quantize import QuantizedArray, bytes_of
    from lora_jax.io.quantized import load_quantized

    tree, metadata = load_quantized(arguments.what)
    flat = flatten(tree)
    boxes = {path: leaf for path, leaf in flat.items() if isinstance(leaf, QuantizedArray)}
    print_table(loss_table([Loss(**row) for row in metadata.get("losses", [])]))
    plain = sum(bytes_of(leaf) for path, leaf in flat.items() if path not in boxes)
    print(f"model: {metadata.get('model', 'unknown')}")
    for spec in sorted({str(leaf.spec) for leaf in boxes.values()}):
        print(f"spec: {spec}")
    _say_bytes(boxes, len(flat) - len(boxes), plain)


def _show_model(arguments: argparse.Namespace) -> None:
    from lora_jax.commands.targets import tables_of
    from lora_jax.tasks.targets import open_sites

    opened = open_sites(arguments.what)
    tables = tables_of(opened, arguments.pattern)
    if opened.stored.boxes:
        _show_boxes(opened.stored)
    print_parts(tables)


def _show_boxes(stored: StoredModel) -> None:
    """Tables what a folder that another tool quantised holds."""
    from lora_jax.core.quantize import bytes_of

    table = Table("weight", "shape", "format", "bytes")
    for path, weight in stored.boxes.items():
        shape, format = weight.described()
        table.add_row(in_terminal(path), str(list(shape)), format, f"{bytes_of(weight):,}")
    print_table(table)
    plain = [name for path, name in stored.names.items() if path not in stored.boxes]
    size = stored.tensors.size
    _say_bytes(
        stored.boxes, len(plain), sum(size(tensor) for name in plain for _, tensor in name.layers())
    )


def _say_bytes(boxes: Mapping[str, QuantizedArray], others: int, plain: int) -> None:
    from lora_jax.core.quantize import bytes_of

    packed, weights = (sum(map(of, boxes.values())) for of in (bytes_of, lambda box: box.size))
    print(
        f"quantised: {len(boxes)} weights, {weights:,} numbers in {packed:,} bytes, "
        f"{8 * packed / max(weights, 1):.4f} bits each"
    )
    print(f"left as they were: {others} weights, {plain:,} bytes")


def loss_table(rows: Sequence[Loss]) -> Table:
    """A row for each matrix, and one for all."""
    from lora_jax.analysis.quantisation import total

    table = Table(
        "weight",
        "layer",
        "format",
        "block",
        "relative error",
        "bits a weight",
        "bytes before",
        "bytes after",
        "scales damaged",
        box=box.SIMPLE_HEAD,
    )
    table.columns[0].no_wrap = True  # whole, so that it can be copied
    for row in rows:
        table.add_row(
            in_terminal(row.path), "" if row.layer is None else str(row.layer), row.format, str(row.block_size or "column"), f"{row.relative_error:.5f}",
            f"{row.bits:.3f}", f"{row.bytes_before:,}", f"{row.bytes_after:,}", f"{row.damage:.1%}" + (" !" if row.damage > 0.01 else ""),
        )  # fmt: skip
    if rows:
        error, bits = total(rows)
        before, after = sum(row.bytes_before for row in rows), sum(row.bytes_after for row in rows)
        table.add_row(
            "all",
            "",
            "",
            "",
            "unknown" if math.isnan(error) else f"{error:.5f}",
            f"{bits:.3f}",
            f"{before:,}",
            f"{after:,}",
            "",
            style="bold",
        )
    return table
