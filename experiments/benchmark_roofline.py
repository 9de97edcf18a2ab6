"""What share of a training step is at the limit of this machine's matrix products, and where the
rest goes.

    python experiments/benchmark_roofline.py [--cases minilm-fp32,gemma-fp32,gemma-nf4] [--steps 5]

Every matrix product in the step's jaxpr is counted, and timed alone at its own shapes, layout and
dtype: their sum is the limit, what the step would take if all else were free. What else there is
comes from a trace of the compiled step, by kind of operation.
"""

from __future__ import annotations

import argparse
import collections
import glob
import math
import re
import statistics
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_train import CASES, prepare, training_step
from jax.extend import core as jex

from lora_jax.kernels.frozen_head import PASSES

Product = tuple[
    Any, ...
]  # shapes and dtypes of both operands, dimension numbers, dtype of the result

# What an instruction's name stack says it is for; the first that matches.
PARTS = (
    ("dequantising", r"decode|restore"),
    ("what a scan over layers reads and keeps", r"dynamic_(update_)?index_in_dim"),
    ("attention (scores, softmax)", r"/attn/|attend"),
    ("norms", r"norm"),
    ("activations (GELU and its gate)", r"gelu|silu|/mlp/"),
    ("loss over the vocabulary", r"while|logsumexp|log_softmax|embed.attend"),
    ("embeddings", r"embed"),
)


def products_of(
    jaxpr: Any, times: float, trips: list[int], found: collections.Counter[Product]
) -> None:
    """Adds every matrix product of a jaxpr to `found`, those inside loops as often as they run.
    `trips`: of loops that do not say, in order.
    """
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            lhs, rhs = (var.aval for var in eqn.invars)
            key = (
                lhs.shape,
                str(lhs.dtype),
                rhs.shape,
                str(rhs.dtype),
                eqn.params["dimension_numbers"],
                str(eqn.outvars[0].aval.dtype),
            )
            found[key] += times
        name = eqn.primitive.name
        inside = times * (
            eqn.params["length"] if name == "scan" else trips.pop(0) if name == "while" else 1
        )
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: isinstance(v, (jex.Jaxpr, jex.ClosedJaxpr))
        ):
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, jex.Jaxpr):
                products_of(inner, inside, trips, found)


def passes(count: int) -> list[int]:
    """How often the loss's two loops run, by its own rule: large passes while more than half of one
    is left, then small ones.
    """
    large, small = PASSES
    full = max(0, -(-(count - large // 2) // large))
    return [full, max(0, -(-(count - full * large) // small))]


def flops(product: Product) -> int:
    """Multiplications and additions of one product."""
    lhs, _, rhs, _, ((contracted, _), (batch, _)), _ = product
    summed, batched = math.prod(lhs[i] for i in contracted), math.prod(lhs[i] for i in batch)
    return 2 * math.prod(lhs) * math.prod(rhs) // (summed * batched)


def seconds_of(product: Product, repeats: int = 5) -> float:
    """The least time of one product alone."""
    lhs, lhs_dtype, rhs, rhs_dtype, dimensions, out = product
    rng = np.random.default_rng(0)
    x, y = (
        jnp.asarray(rng.standard_normal(shape, np.float32), dtype)
        for shape, dtype in ((lhs, lhs_dtype), (rhs, rhs_dtype))
    )
    run = jax.jit(lambda x, y: jax.lax.dot_general(x, y, dimensions, preferred_element_type=out))
    jax.block_until_ready(run(x, y))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(x, y))
        times.append(time.perf_counter() - start)
    return min(times)


def instructions(text: str) -> dict[str, tuple[str, str]]:
    """{instruction: (opcode, name stack)} of a compiled program's text; a fusion around a product
    counts as one.
    """
    found, fused, here = {}, {}, ""
    for line in text.splitlines():
        if opened := re.match(r"%?([\w.-]+) .*\{$", line.strip().removeprefix("ENTRY ")):
            here = opened[1]
        named = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = .*? ([a-z][\w-]*)\(", line)
        if not named:
            continue
        stack = re.search(r'op_name="([^"]*)"', line)
        opcode, called = named[2], re.search(r"calls=%?([\w.-]+)", line)
        if opcode == "dot" or "matmul" in line.partition("metadata")[0]:
            opcode, fused[here] = "dot", "dot"
        found[named[1]] = (opcode, stack[1] if stack else "", called[1] if called else "")
    return {
        name: ("dot" if opcode == "fusion" and fused.get(called) else opcode, stack)
        for name, (opcode, stack, called) in found.items()
    }


def trace_of(run: Any, steps: int) -> dict[str, float]:
    """{instruction: seconds of all threads} of a few steps."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                run()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        total: dict[str, float] = collections.defaultdict(float)
        for plane in jax.profiler.ProfileData.from_file(path).planes:
            for line in plane.lines:
                for event in line.events:
                    if any(name == "hlo_op" for name, _ in event.stats):
                        total[event.name] += event.duration_ns / 1e9
    return total


def part_of(opcode: str, stack: str) -> str:
    """What an instruction belongs to."""
    if opcode in ("dot", "convolution"):
        return "matrix products"
    for part, pattern in PARTS:
        if re.search(pattern, stack):
            return part
    return "copies and transposes" if opcode in ("copy", "transpose") else "optimiser and all else"


def report(name: str, folder: str, steps: int) -> tuple[str, list[str]]:
    """A row of the table of limits, and rows of where the time of a step goes."""
    kind, precision, batch, length, fraction = CASES[name]
    step, program, state, frozen, data = training_step(
        kind, precision, folder, batch, length, fraction
    )
    found: collections.Counter[Product] = collections.Counter()
    products_of(
        jax.make_jaxpr(step)(state, frozen, data).jaxpr,
        1,
        passes(int(batch * length * fraction)),
        found,
    )
    compiled = program.compile(state, frozen, data)
    held = {"state": state}

    def run() -> None:
        held["state"], _ = jax.block_until_ready(compiled(held["state"], frozen, data))

    run(), run()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    taken = statistics.median(times)
    count = sum(flops(product) * n for product, n in found.items())
    alone = {product: seconds_of(product) for product in found}
    limit = sum(alone[product] * n for product, n in found.items())
    best = max(flops(product) / alone[product] for product in found)
    row = f"| {name} | {count / 1e9:.1f} | {best / 1e9:.0f} | {count / limit / 1e9:.0f} | {1000 * limit:.0f} | {1000 * taken:.0f} | {100 * limit / taken:.0f} % |"
    known, spent = instructions(compiled.as_text()), collections.defaultdict(float)
    for event, seconds in trace_of(run, steps).items():
        opcode, stack = known.get(event, ("", ""))
        if opcode and opcode not in (
            "while",
            "call",
            "conditional",
        ):  # What holds others is counted by what it holds.
            spent[part_of(opcode, stack)] += seconds
    whole = sum(spent.values())
    if not whole:
        raise SystemExit(
            "The trace names no instruction of the compiled step: this version of the profiler "
            "writes another form."
        )
    parts = sorted(spent.items(), key=lambda item: -item[1])
    return row, [
        f"| {name} | {part} | {1000 * taken * seconds / whole:.0f} | {100 * seconds / whole:.0f} % |"
        for part, seconds in parts
    ]


def main() -> None:
    """Prints one table in two parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="minilm-fp32,gemma-fp32,gemma-nf4")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    folders, rows, parts = prepare(), [], []
    for name in arguments.cases.split(","):
        row, more = report(name, folders[CASES[name][0]], arguments.steps)
        rows.append(row)
        parts += more
        print(name, "done", file=sys.stderr, flush=True)
    print(
        "| case | GFLOP a step | best GFLOP/s of a product | GFLOP/s of all | products alone ms | "
        "step ms | share at the limit |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    print("\n".join(rows))
    print("\n| case | where the step goes | ms | share |\n|---|---|---:|---:|")
    print("\n".join(parts))


if __name__ == "__main__":
    main()
