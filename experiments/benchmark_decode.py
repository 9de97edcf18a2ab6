"""Greedy decoding of Gemma-3-270M beside transformers and PEFT on the same machine, in turns:
tokens a second, load time, memory.

    python experiments/benchmark_decode.py [--peer PYTHON] [--only dense,nf4] [--rounds 3] [--record
    FILE]

PYTHON is an interpreter with torch, transformers, PEFT and bitsandbytes. Every program loads the
model, makes 64 tokens after prompts of 32, for 1 and for 8 texts at once, once to warm up
(compilation is there, and told apart), then `--times` times. Programs take turns, so that a machine
that others use as well slows both; the table has medians over all rounds. `resident` is what the
process has in memory at the end beyond what it had before it loaded the model. Files are read once
before they are loaded, so that load times are those of a warm page cache. With --record, results
are added to a file of JSON lines, and the
table is of all that it holds: rounds can be run one by one.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

from benchmark_train import child, prepare

OURS = ("dense", "nf4", "int8", "merged", "separate", "nf4-separate")
PEER = ("peer-dense", "peer-nf4", "peer-adapter")
BATCHES, PROMPT, NEW = (1, 8), 32, 64
TARGET = r"layers(_\d+)?/.*kernel"


def ours(case: str, folder: str, adapter: str, times: int) -> None:
    """Times one of our cases and prints a JSON line."""
    import jax
    import numpy as np

    from lora_jax import QuantSpec, merge
    from lora_jax.core.quantize import bytes_of
    from lora_jax.generation.engine import Generator
    from lora_jax.io.adapter import load_adapter
    from lora_jax.io.weights import load_decoder
    from lora_jax.models import Decoder
    from lora_jax.training.allocator import keep_freed_memory, release_freed_memory

    keep_freed_memory()  # As `lora-jax generate` does.
    form = case.split("-")[0]
    quant = [(TARGET, QuantSpec(form))] if form in ("nf4", "int8") else []
    before, start = _resident(), time.perf_counter()
    config, params = load_decoder(folder, quant=quant, scan=False)
    trainable = {} if case in ("dense", "nf4", "int8") else load_adapter(adapter)[0]
    if case == "merged":
        params, trainable = merge(params, trainable)[0], {}
    engine = Generator(Decoder(config, scan=False), params, trainable, slots=PROMPT + NEW)
    jax.block_until_ready(engine.frozen)
    load = time.perf_counter() - start
    stored = bytes_of(engine.frozen) + bytes_of(engine.trainable)
    del params
    gc.collect()
    release_freed_memory()
    result = {"case": case, "load": load, "stored": stored, "first": {}, "seconds": {}}
    prompts = np.random.default_rng(0).integers(5, 200_000, (max(BATCHES), PROMPT)).tolist()
    for batch in BATCHES:
        taken = []
        for _ in range(times + 1):
            start = time.perf_counter()
            made = engine.generate(prompts[:batch], max_new=NEW)
            taken.append(time.perf_counter() - start)
        result["first"][str(batch)], result["seconds"][str(batch)] = taken[0], taken[1:]
    result |= {"tokens": made[0], "resident": _resident() - before}
    print(json.dumps(result))


def _resident() -> int:
    """Bytes of this process that are in memory, pages of mapped files among them."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def make_adapters(cache: Path, folder: str) -> tuple[str, str]:
    """Folders of one adapter with random factors, r=8 on all linear layers: ours and PEFT's."""
    import jax
    import jax.numpy as jnp

    from lora_jax import LoraSpec, adapt
    from lora_jax.core.fingerprint import fingerprint
    from lora_jax.io.adapter import save_adapter
    from lora_jax.io.peft import save_peft
    from lora_jax.io.weights import decoder_names, load_decoder
    from lora_jax.models import Decoder

    own, peft = cache / "decode-adapter", cache / "decode-adapter-peft"
    if own.is_dir() and peft.is_dir():
        return str(own), str(peft)
    config, params = load_decoder(folder, scan=False)
    inputs = (jnp.ones((1, 8), jnp.int32),)
    base = fingerprint(params)
    _, trainable = adapt(
        Decoder(config, scan=False),
        params,
        inputs,
        lora=[(TARGET, LoraSpec(rank=8, alpha=16.0))],
        key=jax.random.key(0),
    )
    for n, path in enumerate(sorted(trainable)):
        trainable[path] = trainable[path].replace(
            b=1e-3 * jax.random.normal(jax.random.key(n), trainable[path].b.shape)
        )
    save_adapter(own, trainable, base=base, model=folder)
    save_peft(
        peft,
        trainable,
        decoder_names(config, scan=False),
        base_model=folder,
        task_type="CAUSAL_LM",
        base=base,
    )
    return str(own), str(peft)


def table(records: list[dict]) -> str:
    """Medians over rounds, one line a case."""
    lines = [
        "| case | tokens/s, 1 text | tokens/s, 8 texts | first call s, 1 / 8 | load s | resident MB | weights MB |"
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for case in (*OURS, *PEER):
        mine = [record for record in records if record["case"] == case]
        if not mine:
            continue
        median = lambda values: statistics.median(values)
        rates = [
            int(b) * NEW / median(s for record in mine for s in record["seconds"][b])
            for b in map(str, BATCHES)
        ]
        first = [median(record["first"][b] for record in mine) for b in map(str, BATCHES)]
        load, resident, stored = (
            median(record[key] for record in mine) for key in ("load", "resident", "stored")
        )
        lines.append(
            f"| {case} | {rates[0]:.1f} | {rates[1]:.1f} | {first[0]:.1f} / {first[1]:.1f} | "
            f"{load:.1f} | {resident / 1e6:.0f} | "
            f"{stored / 1e6:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the cases and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer", help="an interpreter with torch, transformers, PEFT and bitsandbytes"
    )
    parser.add_argument(
        "--only", default=",".join((*OURS, *PEER)), help="cases, separated by commas"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--times", type=int, default=2, help="timed calls a round, for each number of texts"
    )
    parser.add_argument(
        "--record", type=Path, help="a file of JSON lines that results are added to"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "lora_jax" / "benchmark"
    )
    parser.add_argument("--ours", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        return ours(*arguments.ours[:3], int(arguments.ours[3]))
    chosen = [case for case in arguments.only.split(",") if arguments.peer or case not in PEER]
    if unknown := [case for case in chosen if case not in (*OURS, *PEER)]:
        raise SystemExit(f"unknown cases {unknown}; known are {', '.join((*OURS, *PEER))}")
    folder = prepare(arguments.cache)["gemma"]
    own, peft = make_adapters(arguments.cache, folder)
    for file in Path(folder).glob("*.safetensors"):
        file.read_bytes()
    records = []
    if arguments.record and arguments.record.is_file():
        records = [json.loads(line) for line in arguments.record.read_text().splitlines()]
    for _ in range(arguments.rounds):
        for case in chosen:
            program, adapter = [sys.executable, __file__, "--ours"], own
            if case in PEER:
                program, adapter = (
                    [arguments.peer, str(Path(__file__).parent / "peers" / "decode.py")],
                    peft,
                )
            records.append(child([*program, case, folder, adapter, str(arguments.times)]))
            if arguments.record:
                with arguments.record.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    print(table(records))
    firsts = {
        case: next(r["tokens"] for r in records if r["case"] == case)
        for case in {r["case"] for r in records}
    }
    for one, other in (("dense", "peer-dense"), ("separate", "peer-adapter")):
        if one in firsts and other in firsts:
            same = sum(a == b for a, b in zip(firsts[one], firsts[other]))
            print(f"{one} and {other}: {same} of {NEW} tokens of the first text are the same")
    return None


if __name__ == "__main__":
    main()
