"""Quantise and dequantise rates beside bitsandbytes', in one run: the two take turns, so that both
meet the same machine.

    python experiments/benchmark_quantize.py [--peer PYTHON] [--rounds 5]

PYTHON is an environment with bitsandbytes 0.50.2 (the extra `peer`); without it only ours are
measured. A rate is weights a second in the best round by wall time, and over all rounds by
processor time (all threads added), of a (4, 1024, 1024) stack in float32.
"""

import argparse
import json
import subprocess
import sys
import time

_PEER = """
import json, sys, time, torch
import bitsandbytes.functional as F
w = torch.randn(4096, 1024) * 0.02
q, state = F.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
jobs = {
    "quantise nf4+dq": lambda: F.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True),
    "dequantise nf4+dq": lambda: F.dequantize_4bit(q, state),
}
for line in sys.stdin:
    job = jobs[line.strip()]
    job()
    best = []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        job()
        best.append((time.perf_counter() - wall, time.process_time() - cpu))
    print(json.dumps([min(t[0] for t in best), sum(t[1] for t in best) / 3]), flush=True)
"""


def ours() -> dict:
    import jax
    import jax.numpy as jnp

    from lora_jax.core.quantize import QuantSpec, quantize

    w = jax.random.normal(jax.random.key(0), (4, 1024, 1024)) * 0.02
    read = jax.jit(lambda q: q.matrix())
    read_half = jax.jit(lambda q: q.matrix(jnp.bfloat16))
    jobs = {}
    for name, spec in {
        "nf4+dq": QuantSpec(), "nf4": QuantSpec(double=False), "fp4+dq": QuantSpec("fp4"), "nf3+dq": QuantSpec("nf3"),
        "int4": QuantSpec("int4", double=False), "int4_asym+dq": QuantSpec("int4_asym"), "int8 rows": QuantSpec("int8", None, False),
        "nf8+dq": QuantSpec("nf8"), "fp8_e4m3+dq": QuantSpec("fp8_e4m3"),
    }.items():  # fmt: skip
        q = quantize(w, spec)
        jobs[f"quantise {name}"] = lambda spec=spec: jax.block_until_ready(quantize(w, spec))
        jobs[f"dequantise {name}"] = lambda q=q: jax.block_until_ready(read(q))
        jobs[f"dequantise {name} to bf16"] = lambda q=q: jax.block_until_ready(read_half(q))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", help="a Python with bitsandbytes")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    jobs = ours()
    size = 4 * 1024 * 1024
    peer = None
    if arguments.peer:
        peer = subprocess.Popen(
            [arguments.peer, "-c", _PEER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    times: dict[str, list[tuple[float, float]]] = {}

    def keep(name: str, wall: float, cpu: float) -> None:
        times.setdefault(name, []).append((wall, cpu))

    for _ in range(arguments.rounds):
        for name, job in jobs.items():
            job()
            for _ in range(3):
                wall, cpu = time.perf_counter(), time.process_time()
                job()
                keep(name, time.perf_counter() - wall, time.process_time() - cpu)
            if peer is not None and name in ("quantise nf4+dq", "dequantise nf4+dq"):
                peer.stdin.write(name + "\n")
                peer.stdin.flush()
                keep(f"bitsandbytes {name}", *json.loads(peer.stdout.readline()))
    # Processor time has too coarse a clock for a best round.
    best = {
        name: (min(wall for wall, _ in pairs), sum(cpu for _, cpu in pairs) / len(pairs))
        for name, pairs in times.items()
    }
    print(f"{'':40s}  G weights/s (wall)  G weights/processor-s")
    for name, (wall, cpu) in best.items():
        print(f"{name:40s}  {size / wall / 1e9:18.3f}  {size / cpu / 1e9:21.3f}")
    for name in ("quantise nf4+dq", "dequantise nf4+dq") if peer else ():
        (wall, cpu), (their_wall, their_cpu) = best[name], best[f"bitsandbytes {name}"]
        print(
            f"{name}: {their_wall / wall:.1f} times bitsandbytes by wall time, "
            f"{their_cpu / cpu:.1f} by processor time"
        )
    if peer is not None:
        peer.stdin.close()
        peer.wait()


if __name__ == "__main__":
    sys.exit(main())
