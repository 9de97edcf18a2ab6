"""Which kernel multiplies with a quantised weight, chosen while a program is traced."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp

from lora_jax.core.notice import say_once
from lora_jax.core.platform import compute_capability, platform
from lora_jax.core.quantize import QuantizedArray

Kernel = Literal["reference", "pallas"]
# Largest number of tokens for which `auto` takes the fused kernel, by bits and dtype. It
# dequantises a weight once for every 32 tokens and saves writing and reading it dense, so few
# tokens gain most. These are estimates by counting bytes: no GPU has timed them;
# experiments/benchmark_dequant_matmul.py prints this table as it measures it.
MOST_TOKENS: dict[tuple[int, str], int] = {
    (4, "bfloat16"): 64,
    (4, "float16"): 64,
    (8, "bfloat16"): 32,
    (8, "float16"): 32,
}


def kernel_for(weight: QuantizedArray, tokens: int, dtype: Any) -> Kernel:
    """'pallas' where the fused kernel is to be used, else 'reference': dequantise, then multiply.

    The weight says it itself (`QuantSpec.kernel`), so that a program that was compiled for one
    kernel is not taken for another. On a GPU, 'auto' follows `MOST_TOKENS`; 'pallas' asks for the
    fused kernel wherever it works, and where it does not, the reason is printed once. On a CPU it
    is never used.
    """
    wanted = weight.spec.kernel
    if wanted == "reference" or (wanted == "auto" and not _pays(weight, tokens, dtype)):
        return "reference"
    why = _why_not_placed(weight) or _why_not_here() or _why_not_pallas(weight)
    if why is not None:
        say_once(
            "quantised weights are dequantised before they are multiplied, not in one kernel: "
            f"{why}."
        )
    return "reference" if why is not None else "pallas"


def _pays(weight: QuantizedArray, tokens: int, dtype: Any) -> bool:
    most = MOST_TOKENS.get((weight.spec.bits, jnp.dtype(dtype).name), 0)
    return platform() == "gpu" and tokens <= most


def _why_not_placed(weight: QuantizedArray) -> str | None:
    on_mesh = "the weight lies on a mesh, and XLA cannot divide a kernel among its devices"
    return None if weight.cut is None else on_mesh


def _why_not_here() -> str | None:
    if platform() != "gpu":
        return f"the backend is {platform()!r}, not 'gpu'"
    capability = compute_capability()
    try:
        enough = float(capability) >= 8.0
    except (TypeError, ValueError):
        enough = False
    if enough:
        return None
    return (
        "the kernel needs an NVIDIA GPU of compute capability 8.0 or more, and this one has "
        f"{capability}"
    )


def _why_not_pallas(weight: QuantizedArray) -> str | None:
    # Imported where it is needed: Pallas takes a third of a second.
    from lora_jax.kernels.pallas_dequant_matmul import why_not

    return why_not(weight)
