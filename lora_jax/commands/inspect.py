"""Show what a quantised checkpoint holds and lost by layer, what an adapter covers, or which weights
of a model can be targets.

  lora-jax inspect runs/minilm-nf4
  lora-jax inspect --adapter runs/default/lora-fp32-r4-all_linear-s0-1a2b3c4d/adapter
  lora-jax inspect --adapter peft_folder --model minilm-l6
  lora-jax inspect minilm-l6 --targets
  lora-jax inspect minilm-l6 --targets --pattern 'ffn=layers(_\\d+)?/mlp/.*/kernel'

Of a checkpoint the whole file is read, so that its checksum is verified; no weight is dequantised.
A model folder that another tool quantised (bitsandbytes, GPTQ, AWQ, NVFP4) works, too: formats and
bytes by weight, of which none is read.
Of an adapter, ours or PEFT's, the rank at every site and layer is shown, its base, and sites that
change nothing. Of a model, the named sets of targets and its sites; no weight is read.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from lora_jax.commands.shared import print_table
from lora_jax.core.escapes import in_terminal

if TYPE_CHECKING:
    from lora_jax.analysis.quantisation import Loss
    from lora_jax.core.quantize import QuantizedArray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax inspect`."""
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="what lora-jax quantize wrote, or a quantised model of another tool; with --adapter, an adapter's folder; with --targets, a "
        "model: a folder, a known name or a Hugging Face id",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="FOLDER is an adapter (adapter.safetensors, or PEFT's adapter_config.json)",
    )
    parser.add_argument(
        "--targets",
        action="store_true",
        help="FOLDER is a model: the named sets of targets, what each takes of it, and its sites",
    )
    parser.add_argument(
        "--pattern",
        action="append",
        default=[],
        metavar="[NAME=]REGEX",
        help="with --targets: targets of your own beside the named ones",
    )
    parser.add_argument(
        "--model", help="the base of a PEFT adapter: a folder, a known name or a Hugging Face id"
    )


def run(arguments: argparse.Namespace) -> int:
    """Reads the checkpoint, the adapter or the model's names and prints the table."""
    if arguments.targets or arguments.pattern:
        return _targets(arguments)
    if arguments.adapter:
        from lora_jax.commands.adapter import describe

        print(describe(arguments.folder, arguments.model))
        return 0
    from lora_jax.analysis.quantisation import Loss
    from lora_jax.core.paths import flatten
    from lora_jax.core.quantize import QuantizedArray, bytes_of
    from lora_jax.io.quantized import FILE, load_quantized

    folder = Path(arguments.folder)
    if (folder / "config.json").is_file() and not (folder / FILE).is_file():
        return _stored(folder)
    tree, metadata = load_quantized(arguments.folder)
    flat = flatten(tree)
    boxes = {path: leaf for path, leaf in flat.items() if isinstance(leaf, QuantizedArray)}
    print_table(loss_table([Loss(**row) for row in metadata.get("losses", [])]))
    plain = sum(bytes_of(leaf) for path, leaf in flat.items() if path not in boxes)
    print(f"model: {metadata.get('model', 'unknown')}")
    for spec in sorted({str(leaf.spec) for leaf in boxes.values()}):
        print(f"spec: {spec}")
    _say_bytes(boxes, len(flat) - len(boxes), plain)
    return 0


def _stored(folder: Path) -> int:
    """Tables what a folder that another tool quantised holds."""
    from lora_jax.core.quantize import bytes_of
    from lora_jax.io.weights import open_model

    stored = open_model(folder)
    if not stored.boxes:
        raise ValueError(
            f"{folder} holds no quantised weight: lora-jax inspect {folder} --targets shows a model, "
            "and lora-jax quantize writes a quantised one."
        )
    table = Table("weight", "shape", "format", "bytes")
    for path, box in stored.boxes.items():
        shape, format = box.described()
        table.add_row(in_terminal(path), str(list(shape)), format, f"{bytes_of(box):,}")
    print_table(table)
    plain = [name for path, name in stored.names.items() if path not in stored.boxes]
    size = stored.tensors.size
    _say_bytes(
        stored.boxes, len(plain), sum(size(tensor) for name in plain for _, tensor in name.layers())
    )
    return 0


def _say_bytes(boxes: Mapping[str, QuantizedArray], others: int, plain: int) -> None:
    from lora_jax.core.quantize import bytes_of

    packed, weights = (sum(map(of, boxes.values())) for of in (bytes_of, lambda box: box.size))
    print(
        f"quantised: {len(boxes)} weights, {weights:,} numbers in {packed:,} bytes, "
        f"{8 * packed / max(weights, 1):.4f} bits each"
    )
    print(f"left as they were: {others} weights, {plain:,} bytes")


def _targets(arguments: argparse.Namespace) -> int:
    from lora_jax.commands.targets import tables_of

    if arguments.adapter or not arguments.targets:
        raise ValueError(
            "--targets is of a model and --adapter of an adapter: give one of them; --pattern goes "
            "with --targets."
        )
    for table in tables_of(arguments.folder, arguments.pattern):
        print_table(table)
    return 0


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
    )
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
