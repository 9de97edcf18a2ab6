"""Write a model's weights in few bits, and show by layer what that loses.

  lora-jax quantize minilm-l6 --format nf4 --out runs/minilm-nf4
  lora-jax quantize minilm-l6 --format int4 --block-size column --no-double --out runs/minilm-int4
  lora-jax inspect runs/minilm-nf4

The folder gets quantized.safetensors, config.json and the tokenizer. Everything that --targets does
not match stays as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.commands.dense import TOKENIZER
from lora_jax.commands.inspect import loss_table
from lora_jax.commands.shared import print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax quantize`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder, a known name such as minilm-l6, or a Hugging Face id",
    )
    parser.add_argument("--out", required=True, help="the folder to write")

    parser.add_argument(
        "--format",
        default="nf4",
        help="nf2 to nf8, fp4, int2 to int8, fp8_e4m3, ... (default: %(default)s)",
    )
    parser.add_argument(
        "--block-size",
        default="64",
        help="weights that share a scale, or 'column' (default: %(default)s)",
    )
    parser.add_argument(
        "--no-double",
        action="store_true",
        help="keep the scales in --scale-dtype instead of 8 bits",
    )
    parser.add_argument(
        "--scale-dtype", default="float32", help="with --no-double: float32, bfloat16 or e8m0"
    )
    parser.add_argument(
        "--second-level",
        default="mean",
        help="how scales become 8 bits: mean, log or tensor (NVFP4)",
    )
    parser.add_argument(
        "--fit", default="range", help="how scales are chosen: range, hqq or entropy"
    )
    parser.add_argument(
        "--rotation", default="none", help="'hadamard' rotates inputs, which spreads outliers"
    )

    parser.add_argument(
        "--targets",
        default="all-linear",
        help="a name, or a regex on whole paths (default: %(default)s)",
    )
    parser.add_argument(
        "--no-scan", action="store_true", help="store the layers one by one, not stacked"
    )


def run(arguments: argparse.Namespace) -> int:
    """Quantises weight by weight, writes the folder and prints the table."""
    from lora_jax.adapters.sites import find_sites
    from lora_jax.config import resolve_targets
    from lora_jax.core.paths import match, unflatten
    from lora_jax.core.quantize import QuantSpec
    from lora_jax.io.hub import resolve
    from lora_jax.io.quantized import save_quantized
    from lora_jax.io.reading_bar import reading_shown
    from lora_jax.io.weights import open_model
    from lora_jax.models.kinds import example_inputs, model_of

    spec = QuantSpec(
        arguments.format,
        _block_size(arguments.block_size),
        not arguments.no_double,
        arguments.scale_dtype,
        arguments.second_level,
        arguments.fit,
        arguments.rotation,
    )
    folder, scan = resolve(arguments.model), not arguments.no_scan
    stored = open_model(folder, scan=scan, kind="encoder")
    config = stored.config
    sites = find_sites(model_of(config, scan=scan), *example_inputs(config))
    chosen = match(
        [(resolve_targets(arguments.targets), spec)],
        [path for path, site in sites.items() if site.is_matrix],
        what="quant",
    )
    with reading_shown():
        flat, rows = _quantized(stored, chosen)
    metadata = {
        "model": arguments.model, "scan": scan, "encoder": dataclasses.asdict(config), "losses": [dataclasses.asdict(row) for row in rows],
    }  # fmt: skip
    out = Path(arguments.out)
    written = save_quantized(out, unflatten(flat), metadata)
    for name in ("config.json", *TOKENIZER):
        if (folder / name).is_file() and folder.resolve() != out.resolve():
            shutil.copy2(folder / name, out / name)
    print_table(loss_table(rows))
    print(f"written: {written} ({written.stat().st_size / 1e6:.1f} MB)")
    return 0


def _quantized(stored: Any, chosen: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The weights by path, those that are chosen in their format, and what each matrix lost."""
    import numpy as np

    from lora_jax.analysis.quantisation import losses

    rows: list[Any] = []
    flat: dict[str, Any] = {}
    for path, name in stored.names.items():
        # Of each matrix while it is there: no stack is dense, and none is read again for it.
        lost: list[Any] = []
        note = lambda w, q, lost=lost, path=path: lost.extend(
            losses(path, np.asarray(w, np.float32), q)
        )
        try:
            flat[path] = stored.leaf(path, chosen.get(path), seen=note)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        rows += [
            dataclasses.replace(row, layer=layer if name.stack else None)
            for layer, row in enumerate(lost)
        ]
    return flat, rows


def _block_size(text: str) -> int | None:
    if text == "column":
        return None
    if not text.isdigit():
        raise ValueError(
            "--block-size must be an even number of weights, or 'column' for one scale an output "
            f"channel, got {text!r}."
        )
    return int(text)
