"""On a GPU: where the fused dequantise-matmul beats dequantising first, as the table of
lora_jax/kernels/choice.py.

    python experiments/benchmark_dequant_matmul.py

Times both ways, forward and backward together, for a 4096 x 4096 weight and 1 to 4096 tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from lora_jax import QuantSpec, quantize
from lora_jax.kernels.pallas_dequant_matmul import dequant_matmul, dequant_matmul_transposed

SIZE, TOKENS = 4096, [2**k for k in range(13)]


def fused(x: Any, weight: Any) -> Any:
    return dequant_matmul_transposed(dequant_matmul(x, weight), weight)


def reference(x: Any, weight: Any) -> Any:
    return (x @ weight.matrix(x.dtype)) @ weight.matrix(x.dtype).T


def milliseconds(program: Any, *operands: Any) -> float:
    jax.block_until_ready(program(*operands))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        jax.block_until_ready(program(*operands))
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def measured() -> Iterator[dict[str, Any]]:
    """Both ways by format, dtype and tokens."""
    for name in ("nf4", "int8"):
        spec = QuantSpec(name)
        weight = quantize(jax.random.normal(jax.random.key(0), (SIZE, SIZE)), spec)
        for dtype in ("bfloat16", "float16", "float32"):
            for count in TOKENS:
                x = jax.random.normal(jax.random.key(1), (count, SIZE)).astype(dtype)
                yield {
                    "format": name,
                    "bits": spec.bits,
                    "dtype": dtype,
                    "tokens": count,
                    "fused": milliseconds(jax.jit(fused), x, weight),
                    "reference": milliseconds(jax.jit(reference), x, weight),
                }


def most_tokens(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], int]:
    """The most tokens up to which the fused product is faster, without a gap, by bits and dtype."""
    most: dict[tuple[int, str], int] = {}
    lost = set()
    for row in rows:
        key = row["bits"], row["dtype"]
        if row["fused"] >= row["reference"]:
            lost.add(key)
        if key not in lost:
            most[key] = row["tokens"]
    return most


def main() -> None:
    """Prints a table of times and the table of choices."""
    if jax.default_backend() != "gpu":
        raise SystemExit(
            f"The fused kernels run on GPUs, and the backend here is {jax.default_backend()!r}."
        )
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n\n| format | dtype | tokens | "
        "fused ms | reference ms |\n|---|---|---:|---:|---:|"
    )
    rows = []
    for row in measured():
        rows.append(row)
        named = f"| {row['format']} | {row['dtype']} | {row['tokens']} "
        print(f"{named}| {row['fused']:.3f} | {row['reference']:.3f} |", flush=True)
    print(f"\nMOST_TOKENS = {most_tokens(rows)}")


if __name__ == "__main__":
    main()
