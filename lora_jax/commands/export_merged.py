"""Merge a run's adapter into its base, and write the model: dense, for other tools, or quantised
again, with a measure of what of the adapter's gain is left.

  lora-jax export merged runs/default/lora-fp32-r4-all_linear-s0-1a2b3c4d out/model
      dense: a folder that transformers loads, and everything that reads such
  lora-jax export merged RUN out/model --format none --dtype bfloat16 --max-shard-size 2GB
      dense, also where the run's base is quantised, in files of at most about this size
  lora-jax export merged RUN out/model.gguf --gguf Q8_0
      of a decoder, one file for llama.cpp (F32, F16 or Q8_0)
  lora-jax export merged runs/default/qlora-nf4-r4-all_linear-s0-1a2b3c4d runs/merged
      of a quantised base, quantised again as it was
  lora-jax export merged RUN OUT --feedback 8
      errors of rounding are fed back, by the inputs that 8 training batches give (GPTQ)
  lora-jax export merged RUN OUT --format nf3
      in another format than that of the base

A level of 4 bits is a quarter of the block's largest weight wide, and what an adapter adds is a
hundredth of it: rounded to nearest, most weights go back to where they were. So three models are
scored on the run's own validation split, the base, the base with the adapter, and the merged one:
recovery is the share of the adapter's gain in loss that is left. Below --least nothing is written,
unless --anyway says so. What keeps all of it is to train the rounded weights from the start, or to
go on from a finished run for its last steps:

  lora-jax train --config rotten_tomatoes:qlora --config.lora.merge_aware=true
  lora-jax train --config rotten_tomatoes:qlora --config.lora.merge_aware=true \\
      --config.lora.init_from=RUN/adapter

Quantised, OUT gets quantized.safetensors, which `lora_jax.io.load_quantized` reads, and merge.json:
losses, recovery, and by site how much the weight moved and what rounding took of that. The base of
the recovery has the weights that were trained whole (a head) and no factors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

from lora_jax.commands.adapter import new_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax export merged`."""
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run with an adapter")
    parser.add_argument("out", metavar="OUT", help="the new folder")
    parser.add_argument(
        "--format", help="nf4, int8, ..., or none for dense weights; by default as the base was"
    )
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help="of a dense folder: 500MB, 2GB, ...; the weights are cut into files of at most about this size, with an index (5GB)",
    )
    parser.add_argument(
        "--gguf", metavar="TYPE", choices=("F32", "F16", "Q8_0"), help="dense, as one GGUF file"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of a dense folder (float32)"
    )
    parser.add_argument(
        "--feedback",
        type=int,
        default=0,
        metavar="BATCHES",
        help="quantised: training batches to measure",
    )
    parser.add_argument("--split", help="quantised: scored on train, validation (default) or test")
    parser.add_argument(
        "--least", type=float, help="quantised: recovery that is enough to be written (0.5)"
    )
    parser.add_argument("--anyway", action="store_true", help="write it whatever is left")


def run(arguments: argparse.Namespace) -> int:
    """Writes the model; of a quantised one prints the losses, the recovery and the worst sites as
    JSON.
    """
    from lora_jax.commands.dense import write_dense
    from lora_jax.config import NO_FORMAT, built
    from lora_jax.core.json_files import save_json
    from lora_jax.core.quantize import QuantSpec
    from lora_jax.io.quantized import save_quantized
    from lora_jax.io.weights import SHARD_BYTES
    from lora_jax.training.memory import parse_bytes
    from lora_jax.training.recovery import merge_run
    from lora_jax.training.saved import load_run

    asked = arguments.gguf or arguments.dtype or arguments.max_shard_size
    quantised = arguments.format not in (None, NO_FORMAT) or arguments.feedback
    if (asked or arguments.format == NO_FORMAT) and quantised:
        raise ValueError(
            "--gguf, --dtype, --max-shard-size and --format none write dense weights, another "
            "--format and --feedback quantised ones: give one kind of them."
        )
    if arguments.gguf and (arguments.dtype or arguments.max_shard_size):
        raise ValueError("--dtype and --max-shard-size are of a folder, and --gguf is one file.")
    out = Path(arguments.out) if arguments.gguf else new_folder(arguments.out)
    shards = arguments.max_shard_size
    size = parse_bytes(shards, "--max-shard-size") if shards else SHARD_BYTES
    saved = load_run(arguments.run)
    plain = saved.config.quant.format == NO_FORMAT and not quantised
    if asked or arguments.format == NO_FORMAT or plain:
        if arguments.split or arguments.least is not None or arguments.anyway:
            raise ValueError(
                "--split, --least and --anyway are of a model that is quantised again, whose recovery "
                "is measured. Dense weights are the sum itself: leave them out."
            )
        dtype = arguments.dtype or "float32"
        write_dense(saved, out, gguf=arguments.gguf, dtype=dtype, shard_bytes=size)
        return 0
    split = "validation" if arguments.split is None else arguments.split
    least = 0.5 if arguments.least is None else arguments.least
    if saved.config.quant.format == NO_FORMAT and not arguments.format:
        raise ValueError(
            "The run's base is not quantised, where merging is exact and has nothing to feed back. "
            "Say what to quantise the merged weights to (--format nf4), or leave out --feedback."
        )
    spec = None
    if arguments.format:
        stored = built(QuantSpec, saved.config.quant, without=("kernel", "format"))
        spec = dataclasses.replace(stored, format=arguments.format)

    merged, report, found = merge_run(saved, spec=spec, feedback=arguments.feedback, split=split)
    sites = {
        path: dict(change=report.change[path], rounding=report.rounding[path], error=error)
        for path, error in report.error.items()
    }
    share = None if math.isnan(found.share) else found.share
    said = dataclasses.asdict(found) | {"recovery": share}
    worst = sorted(sites, key=lambda path: -sites[path]["rounding"])[:3]
    print(json.dumps(said | {"worst": {path: sites[path] for path in worst}}, indent=2))
    if not arguments.anyway and not found.share >= least:
        raise ValueError(
            f"Nothing was written: the merged weights keep {found.share:.2f} of the adapter's gain "
            f"on {found.split} ({found}). Train it merge-aware (config.lora.merge_aware=true, with "
            "config.lora.init_from for its last steps), merge with --feedback 8 or into more bits, "
            "or write it --anyway."
        )
    save_quantized(out, merged, {"run": str(arguments.run), "model": saved.config.model.name})
    save_json(out / "merge.json", said | {"sites": sites})
    return 0
