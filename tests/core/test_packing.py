"""Two codes in a byte: bitsandbytes' order, and packing loses nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.core.packing import pack4, unpack4


def test_the_first_code_of_a_pair_stands_in_the_high_half() -> None:
    assert np.array_equal(pack4(jnp.asarray([[1], [2], [15], [0]], jnp.uint8)), [[0x12], [0xF0]])
    assert np.array_equal(pack4(jnp.asarray([[3]], jnp.uint8), fill=7), [[0x37]])


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 5), (3, 8, 2), (2, 2, 9, 4)])
def test_unpacking_undoes_packing_for_odd_and_even_rows_and_stacks(shape: tuple[int, ...]) -> None:
    codes = np.random.default_rng(0).integers(0, 16, shape).astype(np.uint8)
    packed = pack4(jnp.asarray(codes))
    assert packed.shape == (*shape[:-2], -(-shape[-2] // 2), shape[-1]) and packed.dtype == jnp.uint8
    assert np.array_equal(unpack4(packed, shape[-2]), codes)
