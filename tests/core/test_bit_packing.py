"""Codes come back from their bytes, and no bit is wasted."""

import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.core.bit_packing import PLANES, pack, packed_rows, unpack


@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize("n", [1, 7, 64])
def test_codes_come_back(bits, n):
    codes = jnp.asarray(np.random.default_rng(bits).integers(0, 2**bits, (2, n, 3), np.uint8))
    packed = pack(codes, bits)
    assert packed.shape == (2, packed_rows(n, bits), 3)
    np.testing.assert_array_equal(unpack(packed, bits, n), codes)


@pytest.mark.parametrize("bits", PLANES)
def test_64_codes_take_exactly_their_bits(bits):
    assert 8 * packed_rows(64, bits) == 64 * bits


def test_first_code_of_a_pair_is_in_the_high_half():
    assert pack(jnp.asarray([[1], [2], [3]], jnp.uint8), 4, fill=7).tolist() == [[0x12], [0x37]]


def test_planes_hold_the_high_bits_first():
    # 5 = 101, 3 = 011: high two bits 10, 01, 00, 00 and low bits 1, 1, 0, ...
    packed = pack(jnp.asarray([[5], [3], [0], [0], [0], [0], [0], [0]], jnp.uint8), 3)
    assert packed.ravel().tolist() == [0b10010000, 0, 0b11000000]
