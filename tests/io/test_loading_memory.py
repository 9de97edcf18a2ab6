"""What loading holds on the host beside its result, by shapes: under 2 GB, however large the model."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from lora_jax.core.quantize import QuantSpec
from lora_jax.core.quantize_columns import columns_at_once, quantized_columns
from lora_jax.io.weights import names_of
from lora_jax.models.sizes import SIZES

LLAMA = next(config for name, config in SIZES.items() if "65" in name and "llama" in name.lower())
MODELS = {
    "65B": LLAMA,
    "405B": replace(
        LLAMA,
        vocab_size=128_256,
        hidden_size=16_384,
        num_layers=126,
        num_heads=128,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=53_248,
    ),
}


def beside(rows, out, temporaries):
    """Bytes while a matrix (in, out) is quantised to nf4: what is dense, what its program holds
    besides, and the matrix's own codes, and its scales once in parts and once together.
    """
    dense = rows * columns_at_once(rows, out)
    return dense * (4 + temporaries) + rows * out // 2 + 2 * 4 * rows * out // 64


@pytest.mark.parametrize("size", MODELS)
def test_the_largest_that_loading_holds_beside_its_result(size):
    # The program as it is compiled for a small matrix: what it holds grows with its size.
    small = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    memory = quantized_columns.lower(small, QuantSpec()).compile().memory_analysis()
    temporaries = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / small.size
    matrices = {
        path: (name.rows, name.columns)
        for path, name in names_of(MODELS[size]).items()
        if len(name.shape) > 1
    }
    held = {path: beside(*shape, temporaries) for path, shape in matrices.items()}
    largest = max(held, key=held.__getitem__)
    print(f"{size}: {held[largest]:,.0f} bytes, of {largest}; temporaries {temporaries:.2f}")
    assert held[largest] < 2e9  # embeddings quantised as well
