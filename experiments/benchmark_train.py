"""A training step beside PEFT (and bitsandbytes) on the same machine, in turns: MiniLM and
Gemma-3-270M, r=8 on all linear layers.

    python experiments/benchmark_train.py --peer PYTHON [--only minilm-fp32,gemma-nf4] [--rounds 3]

PYTHON is an interpreter with torch, transformers, PEFT and bitsandbytes. Programs take turns, so
that a machine that others use as well slows both; the table gives medians over rounds, and the
processor time of a step, which load changes least. Without --peer only our steps are timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# (model, precision, batch, tokens, part of the positions that are in the loss)
CASES = {
    "minilm-fp32": ("minilm", "fp32", 32, 64, 1.0),
    "minilm-nf4": ("minilm", "nf4", 32, 64, 1.0),
    "gemma-fp32": ("gemma", "fp32", 4, 128, 1.0),
    "gemma-fp32-quarter": ("gemma", "fp32", 4, 128, 0.25),
    "gemma-bf16": ("gemma", "bf16", 4, 128, 1.0),
    "gemma-nf4": ("gemma", "nf4", 4, 128, 1.0),
    "gemma-nf4-bf16": ("gemma", "nf4-bf16", 4, 128, 1.0),
    "gemma-int8": ("gemma", "int8", 4, 128, 1.0),
    "minilm-int8": ("minilm", "int8", 32, 64, 1.0),
    "minilm-dora": ("minilm", "dora", 32, 64, 1.0),
}
CACHE = Path.home() / ".cache" / "lora_jax" / "benchmark"
WITHOUT_PEER = ("gemma-int8", "minilm-int8", "minilm-dora")


def training_step(
    kind: str, precision: str, folder: str, batch: int, length: int, fraction: float
) -> tuple[Any, ...]:
    """Our step as a function and as a program, and what it takes: state, frozen weights and a
    batch.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lora_jax import LoraSpec, QuantSpec, adapt, create_state, make_optimizer, make_train_step
    from lora_jax.config import OptimConfig
    from lora_jax.io.weights import load_decoder, load_encoder
    from lora_jax.models import Decoder
    from lora_jax.models.encoder import Encoder
    from lora_jax.tasks.heads import classifier_loss
    from lora_jax.training.allocator import keep_freed_memory
    from lora_jax.training.compile import program_for

    keep_freed_memory()
    dtype = jnp.bfloat16 if precision.endswith("bf16") else jnp.float32
    form = "nf4" if precision.startswith("nf4") else "int8" if precision == "int8" else None
    quant = [(r"layers(_\d+)?/.*kernel", QuantSpec(form))] if form else []
    rng = np.random.default_rng(0)
    if kind == "minilm":
        settings, params = load_encoder(folder, num_classes=2, key=jax.random.key(0), scan=False)
        model, whole = Encoder(settings, scan=False, dtype=dtype), ["classifier/.*"]
        tokens = rng.integers(1000, 20000, (batch, length)).astype(np.int32)
        data = dict(
            tokens=tokens,
            mask=np.ones((batch, length), bool),
            types=np.zeros_like(tokens),
            labels=rng.integers(0, 2, batch).astype(np.int32),
            weight=np.ones(batch, np.float32),
        )
        inputs = (jnp.asarray(tokens), jnp.asarray(data["mask"]), jnp.asarray(data["types"]))
        target = r"(layers(_\d+)?/.*|pooler)/kernel"
    else:
        settings, params = load_decoder(folder, dtype=dtype, quant=quant)
        quant = []
        model, whole = Decoder(settings, dtype=dtype), []
        tokens = rng.integers(5, 200_000, (batch, length)).astype(np.int32)
        counts = np.zeros((batch, length), np.float32)
        counts[:, length - int(length * fraction) :] = 1
        data = dict(
            tokens=tokens,
            segments=np.ones_like(tokens),
            labels=np.roll(tokens, -1, 1),
            loss_weight=counts,
        )
        inputs, target = (jnp.asarray(tokens[:1, :8]),), r"layers/.*kernel"
    spec = LoraSpec(rank=8, alpha=16.0, dora=precision == "dora")
    frozen, trainable = adapt(
        model,
        params,
        inputs,
        lora=[(target, spec)],
        quant=quant,
        whole=whole,
        key=jax.random.key(0),
    )
    del params
    tx = make_optimizer(OptimConfig(learning_rate=1e-4), 1000)
    step = make_train_step(classifier_loss(model), tx)
    return (
        step,
        program_for(step, donate=(0,)),
        create_state(trainable, tx, jax.random.key(1)),
        frozen,
        data,
    )


def ours(kind: str, precision: str, folder: str, steps: int, *sizes: Any) -> None:
    """Times our step and prints one JSON line."""
    import jax

    from lora_jax.training.allocator import peak_bytes
    from lora_jax.training.compile import SETTLING

    _, program, state, frozen, data = training_step(kind, precision, folder, *sizes)
    first = time.perf_counter()
    state, metrics = jax.block_until_ready(program(state, frozen, data))
    first = time.perf_counter() - first
    for _ in range(SETTLING):
        state, metrics = jax.block_until_ready(program(state, frozen, data))
    times, used = [], time.process_time()
    for _ in range(steps):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(program(state, frozen, data))
        times.append(time.perf_counter() - start)
    used = (time.process_time() - used) / steps
    told = dict(seconds=times, processor=used, first=first, rss=peak_bytes())
    print(json.dumps(told | {"loss": float(metrics["loss"])}))


def prepare(cache: Path = CACHE) -> dict[str, str]:
    """Folders of both models as Hugging Face files; Gemma is written once from its GGUF."""
    import jax.numpy as jnp

    from lora_jax.io.hub import resolve
    from lora_jax.io.weights import load_decoder, save_decoder

    gemma = cache / "gemma3-270m"
    if not (gemma / "config.json").is_file():
        save_decoder(gemma, *load_decoder(resolve("gemma3-270m")), dtype=jnp.float32)
    return {"minilm": str(resolve("minilm-l6")), "gemma": str(gemma)}


def child(command: list[str]) -> dict:
    """The JSON line that a program prints."""
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Runs the cases and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer", help="an interpreter with torch, transformers, PEFT and bitsandbytes"
    )
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps a round")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--ours", nargs=7, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        kind, precision, folder, *numbers = arguments.ours
        return ours(kind, precision, folder, *map(int, numbers[:3]), float(numbers[3]))
    chosen = arguments.only.split(",")
    if unknown := [name for name in chosen if name not in CASES]:
        raise SystemExit(f"unknown cases {unknown}; known are {', '.join(CASES)}")
    from lora_jax.training.compile import SETTLING

    folders = prepare(arguments.cache)
    print(
        "| case | ours ms | peer ms | ratio | ours processor ms | peer processor ms | ratio | ours "
        "first s | peer first s | ours GB | peer GB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in chosen:
        kind, precision, *sizes, fraction = CASES[name]
        common = [
            kind,
            precision,
            folders[kind],
            str(arguments.steps),
            *map(str, sizes),
            str(fraction),
        ]
        programs = {"ours": [sys.executable, __file__, "--ours", *common]}
        if arguments.peer and name not in WITHOUT_PEER:
            programs["peer"] = [
                arguments.peer,
                str(Path(__file__).parent / "peers" / "train_step.py"),
                *common,
                str(SETTLING),
            ]
        rounds: dict[str, list[dict]] = {who: [] for who in programs}
        for _ in range(arguments.rounds):
            for who, command in programs.items():
                rounds[who].append(child(command))
        print(row(name, rounds), flush=True)
    return None


def row(name: str, rounds: dict[str, list[dict]]) -> str:
    """One line of the table: medians over all steps of all rounds."""
    cells: dict[str, dict[str, float]] = {}
    for who, results in rounds.items():
        cells[who] = {
            "ms": 1000 * statistics.median(s for result in results for s in result["seconds"]),
            "cpu": 1000 * statistics.median(result["processor"] for result in results),
            "first": statistics.median(result["first"] for result in results),
            "gb": max(result["rss"] for result in results) / 1e9,
        }
    mine, peer = cells["ours"], cells.get("peer")
    each = lambda key, digits: (
        f"{mine[key]:.{digits}f} | {peer[key]:.{digits}f}" if peer else f"{mine[key]:.{digits}f} | "
    )
    ratio = lambda key: f"{peer[key] / mine[key]:.2f}" if peer else ""
    return f"| {name} | {each('ms', 0)} | {ratio('ms')} | {each('cpu', 0)} | {ratio('cpu')} | {each('first', 1)} | {each('gb', 2)} |"


if __name__ == "__main__":
    main()
