"""Merge a run's adapter into its base: quantised, and measured for what of its gain is left; or dense.

  lora-jax merge runs/default/qlora-nf4-r4-all_linear-s0-1a2b3c4d runs/merged
  lora-jax merge RUN OUT --feedback 8
      errors of rounding are fed back, by the inputs that 8 training batches give (GPTQ)
  lora-jax merge RUN OUT --format nf3
      in another format than that of the base
  lora-jax merge RUN OUT --format none --max-shard-size 2GB
      dense, which is exact: a folder that transformers loads, in files of at most about this size

A level of 4 bits is a quarter of the block's largest weight wide, and what an adapter adds is a
hundredth of it: rounded to nearest, most weights go back to where they were. So three models are
scored on the run's own validation split, the base, the base with the adapter, and the merged one:
recovery is the share of the adapter's gain in loss that is left. Below --least nothing is written,
unless --anyway says so. What keeps all of it is to train the rounded weights from the start, or to
go on from a finished run for its last steps:

  lora-jax train --config rotten_tomatoes:qlora --config.lora.merge_aware=true
  lora-jax train --config rotten_tomatoes:qlora --config.lora.merge_aware=true \\
      --config.lora.init_from=RUN/adapter

OUT gets quantized.safetensors, which `lora_jax.io.load_quantized` reads, and merge.json: losses,
recovery, and by site how much the weight moved and what rounding took of that. The base of the
recovery has the weights that were trained whole (a head) and no factors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_jax.training.saved import SavedRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax merge`."""
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run with an adapter")
    parser.add_argument("out", metavar="OUT", help="the new folder")
    parser.add_argument(
        "--format",
        help="nf4, int8, ..., or none (dense, as a Hugging Face folder); by default that of the base, which must then be quantised",
    )
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help="with --format none: 500MB, 2GB, ...; the weights are cut into files of at most about this size, with an index (5GB)",
    )
    parser.add_argument(
        "--feedback", type=int, default=0, metavar="BATCHES", help="training batches to measure"
    )
    parser.add_argument("--split", default="validation", help="train, validation (default) or test")
    parser.add_argument(
        "--least", type=float, default=0.5, help="recovery that is enough to be written (0.5)"
    )
    parser.add_argument("--anyway", action="store_true", help="write it whatever is left")


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder, and prints the losses, the recovery and the worst sites as JSON."""
    from lora_jax.config import NO_FORMAT, built
    from lora_jax.core.json_files import save_json
    from lora_jax.core.quantize import QuantSpec
    from lora_jax.io.quantized import save_quantized
    from lora_jax.training.recovery import merge_run
    from lora_jax.training.saved import load_run

    out = Path(arguments.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} must be a new or empty folder. Choose another.")
    if arguments.format == NO_FORMAT:
        return _write_dense(load_run(arguments.run), out, arguments.max_shard_size)
    if arguments.max_shard_size:
        raise ValueError("--max-shard-size cuts a dense model's files: it needs --format none.")
    saved = load_run(arguments.run)
    spec = None
    if arguments.format:
        stored = built(QuantSpec, saved.config.quant, without=("kernel", "format"))
        spec = dataclasses.replace(stored, format=arguments.format)
    elif saved.config.quant.format == NO_FORMAT:
        raise ValueError(
            "The run's base is not quantised, where merging is exact (lora_jax.merge). Say what to "
            "quantise the merged weights to (--format nf4), or that they are to be dense (--format none)."
        )

    merged, report, found = merge_run(
        saved, spec=spec, feedback=arguments.feedback, split=arguments.split
    )
    sites = {
        path: dict(change=report.change[path], rounding=report.rounding[path], error=error)
        for path, error in report.error.items()
    }
    share = None if math.isnan(found.share) else found.share
    said = dataclasses.asdict(found) | {"recovery": share}
    worst = sorted(sites, key=lambda path: -sites[path]["rounding"])[:3]
    print(json.dumps(said | {"worst": {path: sites[path] for path in worst}}, indent=2))
    if not arguments.anyway and not found.share >= arguments.least:
        raise ValueError(
            f"Nothing was written: the merged weights keep {found.share:.2f} of the adapter's gain "
            f"on {found.split} ({found}). Train it merge-aware (config.lora.merge_aware=true, with "
            "config.lora.init_from for its last steps), merge with --feedback 8 or into more bits, "
            "or write it --anyway."
        )
    save_quantized(out, merged, {"run": str(arguments.run), "model": saved.config.model.name})
    save_json(out / "merge.json", said | {"sites": sites})
    return 0


def _write_dense(saved: SavedRun, out: Path, max_shard_size: str | None) -> int:
    from lora_jax.adapters.merge import merge
    from lora_jax.io.export import export_merged
    from lora_jax.io.weights import SHARD_BYTES, save_model
    from lora_jax.models.decoder_config import DecoderConfig
    from lora_jax.training.memory import parse_bytes

    size = parse_bytes(max_shard_size, "--max-shard-size") if max_shard_size else SHARD_BYTES
    merged, _ = merge(saved.frozen, saved.trainable)
    task, model = saved.task, saved.task.model.config
    if isinstance(model, DecoderConfig):
        export_merged(out, model, merged, task.tokenizer, shard_bytes=size)
    else:  # Its tokenizer is that of the base.
        save_model(out, model, merged, shard_bytes=size)
    files = len(list(out.glob("*.safetensors")))
    print(f"{out}: a dense model in {files} file{'s' if files > 1 else ''}")
    return 0
