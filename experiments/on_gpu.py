"""What only a GPU can tell, in one command, within 20 minutes on one H100 or H200:

    python experiments/on_gpu.py --out runs/on_gpu [--only step,kernels] [--peer PYTHON]

Needs jax for CUDA and this checkout, and nothing to download: weights are random, of the models'
true shapes. Every measurement is a process of its own with a limit of its own, so that one that
fails or runs out of memory costs no other. What is measured stands in OUT/results.json at once;
OUT/results.md is its table, and OUT/choice.txt what lora_jax/kernels/choice.py should say. A command
that was stopped goes on with what is missing. PYTHON is an interpreter with torch, transformers,
PEFT and bitsandbytes, for a step of theirs beside ours.

    python experiments/on_gpu.py --out runs/tiny --tiny

measures the same on small shapes on any machine: a rehearsal, whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

STEPS = 10  # timed, of each case
GEMMA, LLAMA = "google/gemma-3-270m", "huggyllama/llama-7b"
LARGE, LLAMA3 = "huggyllama/llama-65b", "meta-llama/Meta-Llama-3-70B"
PROMPT, NEW = 32, 64  # tokens of a text that is continued
TINY = 2  # layers of a model in a rehearsal


@dataclass(frozen=True)
class Case:
    """A training step, or with `decode` the continuation of `rows` texts.

    format: of the base; 'none' is bfloat16. adapters: how many are trained side by side, each on
    `rows` texts of `length` tokens.
    """

    model: str
    format: str = "none"
    rows: int = 4
    length: int = 512
    rank: int = 64
    adapters: int = 1
    optimiser: str = "adamw"
    decode: bool = False
    limit: int = 150  # seconds


CASES = {
    "step gemma-270m bf16": Case(GEMMA, rows=16),
    "step gemma-270m nf4": Case(GEMMA, "nf4", rows=16),
    "step gemma-270m int8": Case(GEMMA, "int8", rows=16),
    "step 7b bf16": Case(LLAMA),
    "step 7b nf4": Case(LLAMA, "nf4"),
    "step 7b int8": Case(LLAMA, "int8"),
    "step 7b nf4, 1 x 512": Case(LLAMA, "nf4", rows=1),
    "step 65b nf4, 1 x 512": Case(LARGE, "nf4", rows=1, optimiser="adamw8bit", limit=300),
    "step llama3-70b nf4, 1 x 8192": Case(
        LLAMA3, "nf4", rows=1, length=8192, rank=16, optimiser="adamw8bit", limit=300
    ),
    "adapters 1 of 7b nf4": Case(LLAMA, "nf4", rows=1, length=128, rank=8),
    "adapters 8 of 7b nf4": Case(LLAMA, "nf4", rows=1, length=128, rank=8, adapters=8),
    "adapters 32 of 7b nf4": Case(LLAMA, "nf4", rows=1, length=128, rank=8, adapters=32),
    "decode gemma-270m bf16": Case(GEMMA, rows=8, decode=True),
    "decode 7b bf16": Case(LLAMA, rows=8, decode=True),
    "decode 7b nf4": Case(LLAMA, "nf4", rows=8, decode=True),
    "decode 7b nf4, one text": Case(LLAMA, "nf4", rows=1, decode=True),
}


def config_of(case: Case, *, tiny: bool) -> Any:
    """The settings of a case, as a user would write them."""
    from lora_jax.config import from_config_dict

    method = "lora" if case.format == "none" else "qlora"
    return from_config_dict(
        {
            "model": {
                "name": case.model,
                "scan": True,
                "remat": True,
                "compute_dtype": "bfloat16",
                "base_dtype": "bfloat16",
            },
            "data": {"task": "completion", "max_length": 32 if tiny else case.length},
            "method": method,
            "lora": {"rank": 4 if tiny else case.rank, "alpha": 16.0, "targets": "all-linear"},
            "quant": {"format": case.format},
            "optim": {"name": case.optimiser, "learning_rate": 1e-4},
            "train": {"batch_size": case.rows, "total_steps": 1000},
        }
    )


def sizes_of(case: Case, *, tiny: bool) -> Any:
    """The model's sizes; in a rehearsal those of a small one of its family."""
    from lora_jax.models.sizes import SIZES

    sizes = SIZES[case.model]
    if not tiny:
        return sizes
    local = {"local_layers": (True, False)} if sizes.local_layers else {}
    return replace(
        sizes, num_layers=TINY, hidden_size=64, intermediate_size=128, vocab_size=512,
        num_heads=4, num_kv_heads=2, head_dim=16, **local,
    )  # fmt: skip


def filled(shapes: Any, key: Any) -> Any:
    """Arrays of these shapes on the device: codes of random bits, the rest small random numbers, one
    layer's for all layers of a stack.
    """
    import jax
    import jax.numpy as jnp

    def made(shape: Any, key: Any) -> Any:
        one = shape.shape[1:] if len(shape.shape) > 2 else shape.shape
        if jnp.issubdtype(shape.dtype, jnp.floating):
            values = 0.02 * jax.random.normal(key, one)
        else:
            values = jax.random.bits(key, one, jnp.uint8)
        return jnp.broadcast_to(values, shape.shape).astype(shape.dtype)

    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(key, len(leaves))
    fill = jax.jit(made, static_argnums=0)
    return jax.tree.unflatten(structure, [fill(*pair) for pair in zip(leaves, keys)])


def train(case: Case, *, tiny: bool) -> dict[str, Any]:
    """Times the steps of a case, and what they hold beside what was planned."""
    import jax
    import numpy as np

    from lora_jax.analysis.footprint import footprint_of
    from lora_jax.tasks.shapes import batch_shapes, shapes_task
    from lora_jax.training.needs import needs_of
    from lora_jax.training.optim import make_optimizer
    from lora_jax.training.programs import programs_for
    from lora_jax.training.slots import there
    from lora_jax.training.step import create_state

    config, slots = config_of(case, tiny=tiny), case.adapters
    sizes = sizes_of(case, tiny=tiny)
    task = shapes_task(config, sizes)
    shapes = batch_shapes(config, task)
    dice = np.random.default_rng(0)
    batch = {
        "tokens": dice.integers(5, 500, shapes["tokens"].shape).astype(np.int32),
        "segments": np.ones(shapes["segments"].shape, np.int32),
        "loss_weight": np.ones(shapes["loss_weight"].shape, np.float32),
    }
    batch["labels"] = np.roll(batch["tokens"], -1, 1)
    start = time.perf_counter()
    needs = needs_of(config, task, shapes, slots=slots)
    compiled = time.perf_counter() - start

    frozen, tx = filled(needs.frozen, jax.random.key(0)), make_optimizer(config.optim, 1000)
    trainable = filled(needs.state.trainable, jax.random.key(1))
    create = lambda tree, key: create_state(tree, tx, key)
    keys = jax.random.split(jax.random.key(2), slots)
    state = jax.vmap(create)(trainable, keys) if slots > 1 else create(trainable, keys[0])
    program = programs_for(task.per_example, config, 1000, slots).train
    rest = ({}, *there(slots, range(slots))) if slots > 1 else ()
    times = []
    for _ in range(2 + STEPS):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(program(state, frozen, batch, *rest))
        times.append(time.perf_counter() - start)

    loss = np.asarray(metrics["loss"])
    if not np.isfinite(loss).all():
        raise FloatingPointError(f"The loss is {loss}.")
    tokens = slots * batch["tokens"].size
    return {
        "seconds": times[2:],
        "tokens_per_second": tokens / float(np.median(times[2:])),
        "compile_seconds": compiled,
        "planned_bytes": needs.peak_bytes,
        "measured_bytes": peak_of_device(),
        # The compiler's own count takes a loop over layers for one layer.
        "flops_per_second": slots * footprint_of(config, sizes).flops / float(np.median(times[2:])),
        "loss": float(loss.mean()),
    }


def decode(case: Case, *, tiny: bool) -> dict[str, Any]:
    """Times greedy continuations with an adapter that is kept apart."""
    import jax
    import numpy as np

    from lora_jax.generation.engine import Generator
    from lora_jax.tasks.shapes import shapes_task
    from lora_jax.training.run import abstract_state

    config = config_of(case, tiny=tiny)
    task = shapes_task(config, sizes_of(case, tiny=tiny))
    frozen, state = abstract_state(config, task)
    slots = PROMPT + NEW
    engine = Generator(
        task.model,
        filled(frozen, jax.random.key(0)),
        filled(state.trainable, jax.random.key(1)),
        slots=slots,
    )
    prompts = np.random.default_rng(0).integers(5, 500, (case.rows, PROMPT)).tolist()
    times = []
    for _ in range(4):
        start = time.perf_counter()
        engine.generate(prompts, max_new=NEW)
        times.append(time.perf_counter() - start)
    return {
        "seconds": times[1:],
        "tokens_per_second": case.rows * NEW / float(np.median(times[1:])),
        "compile_seconds": times[0],
        "measured_bytes": peak_of_device(),
    }


def peak_of_device() -> int | None:
    """The most that the device's allocator has held in this process; None on a CPU."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def surroundings() -> dict[str, Any]:
    """Device, driver, versions, commit."""
    from lora_jax.sweeps.provenance import environment

    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        card = subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        card = ""
    return environment() | {"card": card}


def peer(case: Case, interpreter: str, out: Path, *, tiny: bool) -> dict[str, Any]:
    """PEFT's step on a random Gemma of the same shape, which is written as Hugging Face's files."""
    import jax

    from lora_jax.io.weights import save_decoder
    from lora_jax.models.decoder import Decoder

    folder, sizes = out / "gemma", sizes_of(case, tiny=tiny)
    if not (folder / "config.json").is_file():
        example = jax.ShapeDtypeStruct((1, 8), "int32")
        shapes = jax.eval_shape(Decoder(sizes).init, jax.random.key(0), example)["params"]
        save_decoder(folder, sizes, jax.device_get(filled(shapes, jax.random.key(0))))
    script = Path(__file__).parent / "peers" / "train_step.py"
    precision = "bf16" if case.format == "none" else f"{case.format}-bf16"
    length = config_of(case, tiny=tiny).data.max_length
    asked = [interpreter, str(script), "gemma", precision, str(folder), str(STEPS)]
    asked += [str(case.rows), str(length), "1.0", "2", str(case.rank)]
    told = json.loads(output_of(asked, case.limit).splitlines()[-1])
    middle = sorted(told["seconds"])[STEPS // 2]
    tokens = case.rows * length
    return {
        "seconds": told["seconds"],
        "tokens_per_second": tokens / middle,
        "measured_bytes": told.get("device_bytes"),
        "loss": told["loss"],
    }


def kernels() -> dict[str, Any]:
    """The fused product beside dequantising first, and the table that follows."""
    import benchmark_dequant_matmul as benchmark

    rows = list(benchmark.measured())
    return {"rows": rows, "most_tokens": str(benchmark.most_tokens(rows))}


def tests() -> dict[str, Any]:
    """The tests that need a GPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-n",
        "0",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    said = done.stdout.strip().splitlines()
    if done.returncode:
        raise RuntimeError("\n".join(said[-40:]))
    return {"said": said[-1]}


def output_of(command: list[str], limit: float) -> str:
    """What a program printed.

    Raises:
        RuntimeError: it failed, or took longer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it took longer than {limit:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        # What was raised, and not what jax adds about its frames.
        named = [line for line in said if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
        raise RuntimeError((named or said or [f"exit status {done.returncode}"])[-1][:1500])
    return done.stdout


def parts(interpreter: str | None, *, tiny: bool) -> dict[str, int]:
    """What is measured, in this order, and its limit in seconds; kernels are compiled for GPUs
    alone.
    """
    found = {"environment": 60} | ({} if tiny else {"tests": 240, "kernels": 240})
    found |= {name: case.limit for name, case in CASES.items()}
    if interpreter:
        ours = [name for name, case in CASES.items() if case.model == GEMMA and not case.decode]
        found |= {f"peer {name}": 150 for name in ours if CASES[name].format != "int8"}
    # A rehearsal's machine may be slow.
    return {name: 10 * limit for name, limit in found.items()} if tiny else found


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One part, in this process."""
    if name == "environment":
        return surroundings()
    if name == "tests":
        return tests()
    if name == "kernels":
        return kernels()
    if name.startswith("peer "):
        case = CASES[name.removeprefix("peer ")]
        return peer(case, arguments.peer, arguments.out, tiny=arguments.tiny)
    case = CASES[name]
    return (decode if case.decode else train)(case, tiny=arguments.tiny)


def table(results: dict[str, Any]) -> str:
    """Markdown of all that was measured."""
    about = results.get("environment", {})
    lines = [
        f"{about.get('card') or about.get('device')}, jax {about.get('versions', {}).get('jax')}, "
        f"commit {(about.get('git') or {}).get('commit')}",
        "",
        "| what | ms | tokens/s | TFLOP/s | planned GB | measured GB | compiled in s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    shown = lambda value, unit, digits: "" if not value else f"{value / unit:.{digits}f}"
    for name, one in results.items():
        if "seconds" not in one:
            continue
        middle = sorted(one["seconds"])[len(one["seconds"]) // 2]
        cells = (
            shown(middle, 1e-3, 1),
            shown(one.get("tokens_per_second"), 1, 0),
            shown(one.get("flops_per_second"), 1e12, 1),
            shown(one.get("planned_bytes"), 1e9, 2),
            shown(one.get("measured_bytes"), 1e9, 2),
            shown(one.get("compile_seconds"), 1, 0),
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    failed = {name: one["failed"] for name, one in results.items() if "failed" in one}
    lines += ["", *(f"- {name} failed: {why.splitlines()[-1]}" for name, why in failed.items())]
    lines += [f"- tests: {results['tests']['said']}"] if "said" in results.get("tests", {}) else []
    return "\n".join(lines) + "\n"


def chosen(only: str, names: list[str]) -> list[str]:
    """The parts whose names begin with one of these.

    Raises:
        SystemExit: one begins no name.
    """
    wanted = [one.strip() for one in only.split(",") if one.strip()]
    if unknown := [one for one in wanted if not any(name.startswith(one) for name in names)]:
        raise SystemExit(f"Nothing begins with {unknown}. There is: {', '.join(names)}.")
    return [name for name in names if not wanted or name.startswith(tuple(wanted))]


def main() -> None:
    """Measures what is missing, and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="parts, by the beginnings of their names")
    parser.add_argument("--peer", help="an interpreter with torch, PEFT and bitsandbytes")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on any machine")
    parser.add_argument("--minutes", type=float, default=20, help="begin nothing after this")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return print(json.dumps(measure(arguments.child, arguments)))

    limits, end = (
        parts(arguments.peer, tiny=arguments.tiny),
        time.monotonic() + 60 * arguments.minutes,
    )
    wanted = chosen(arguments.only, list(limits))
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "results.json"
    results = json.loads(kept.read_text()) if kept.is_file() else {}
    # This process starts no device: each measurement has all of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    ask = lambda name: json.loads(
        output_of([sys.executable, __file__, *sys.argv[1:], "--child", name], limits[name])
        .strip()
        .splitlines()[-1]
    )
    results["environment"] = ask("environment")
    backend = results["environment"]["device"]["platform"]
    if backend != "gpu" and not arguments.tiny:
        raise SystemExit(
            f"The backend here is {backend!r}, and this measures a GPU. Install jax[cuda12], or "
            "rehearse with --tiny."
        )

    for name in wanted:
        if name in results and "failed" not in results[name]:
            continue
        left = end - time.monotonic()
        if left <= 0:
            print(f"{name}: not begun, {arguments.minutes:g} minutes are over", flush=True)
            continue
        start = time.monotonic()
        try:
            results[name] = ask(name)
        except RuntimeError as error:
            results[name] = {"failed": str(error)}
        kept.write_text(json.dumps(results, indent=1))
        (arguments.out / "results.md").write_text(table(results))
        said = "failed" if "failed" in results[name] else "done"
        print(f"{name}: {said} in {time.monotonic() - start:.0f} s", flush=True)

    if "most_tokens" in results.get("kernels", {}):
        text = f"MOST_TOKENS = {results['kernels']['most_tokens']}\n"
        (arguments.out / "choice.txt").write_text(text)
    (arguments.out / "results.md").write_text(table(results))
    print(table(results))
    if any("failed" in one for one in results.values()):
        raise SystemExit(1)
    return None


if __name__ == "__main__":
    main()
