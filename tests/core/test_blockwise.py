"""Arrays in 8 bits by blocks: nearest level, blocks that stack axes and padding leave alone, and
bytes.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from user_models import same_bits

from lora_jax import bytes_of
from lora_jax.core.blockwise import BLOCK, quantize_blocks, restored, zero_blocks
from lora_jax.core.codebooks import dynamic_map, midpoints

RNG = np.random.default_rng(0)


def numbers(shape: tuple[int, ...], signed: bool) -> np.ndarray:
    x = RNG.standard_normal(shape) * 10.0 ** RNG.integers(-5, 1, shape)
    return (x if signed else np.abs(x)).astype(np.float32)


def test_the_unsigned_map_is_bitsandbytes() -> None:
    table = dynamic_map(False)
    # Of bitsandbytes' `create_dynamic_map(signed=False)`, as little-endian float32.
    assert (
        hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()
        == "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398"
    )
    assert table.shape == (256,) and table[0] == 0 and table[-1] == 1 and (np.diff(table) > 0).all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    ("shape", "axis"), [((4500,), -1), ((3, 600), -1), ((2, 600, 3), -2), ((5, 7), -2)]
)
def test_every_number_gets_the_nearest_level_of_its_block(
    shape: tuple[int, ...], axis: int, signed: bool
) -> None:
    x = numbers(shape, signed)
    stored = jax.jit(lambda x: quantize_blocks(x, axis=axis, signed=signed))(x)
    got = np.moveaxis(np.asarray(stored.restore(), np.float64), axis, -1)
    rows = np.moveaxis(x.astype(np.float64), axis, -1)
    # Nothing that is above 0 becomes 0 in the map without a sign.
    levels = dynamic_map(signed).astype(np.float64)[0 if signed else 1 :]
    for start in range(0, rows.shape[-1], BLOCK):
        block, level = rows[..., start : start + BLOCK], got[..., start : start + BLOCK]
        absmax = np.abs(block).max(-1, keepdims=True)
        nearest = np.abs(block[..., None] / absmax[..., None] - levels).min(-1) * absmax
        # Reciprocal, quotient, thresholds and products are rounded to float32, 6e-8 each.
        assert (np.abs(level - block) <= nearest + 2.4e-7 * (np.abs(block) + np.abs(level))).all()
    assert stored.codes.shape == shape and stored.absmax.shape[axis] == -(-shape[axis] // BLOCK)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_a_binary_search_to_the_last_bit(signed: bool) -> None:
    edges = midpoints(dynamic_map(signed))
    bits = RNG.integers(0, 2**32, 200_000, dtype=np.uint32).view(
        np.float32
    )  # Every size that a float32 can have,
    bits = bits[np.abs(bits) > 1e-37]  # but those that XLA takes for 0
    unit = np.concatenate(
        [
            edges,
            np.nextafter(edges, np.float32(-2)),
            np.nextafter(edges, np.float32(2)),
            bits,
            numbers((200_000,), True),
        ]
    )
    unit = np.append(unit[np.abs(unit) < 1], [np.float32(1), np.float32(-1), np.float32(-0.0)])
    unit = unit if signed else np.abs(unit)
    # A 1 at the start of each block: numbers are what they are divided by.
    rows = np.concatenate(
        [
            np.ones((-(-len(unit) // 255), 1), np.float32),
            np.resize(unit, (-(-len(unit) // 255), 255)),
        ],
        1,
    )
    wanted = np.searchsorted(edges, rows, "left")
    if not signed:
        wanted = np.where(rows > 0, np.maximum(wanted, 1), wanted)
    assert np.array_equal(quantize_blocks(jnp.asarray(rows), axis=-1, signed=signed).codes, wanted)


def test_blocks_of_zeros_stay_zeros() -> None:
    x = jnp.zeros((300, 2)).at[0, 0].set(2.0)
    got = quantize_blocks(x, axis=-2, signed=True).restore()
    assert np.array_equal(got, x)
    for signed in (True, False):
        made, found = (
            zero_blocks((300, 2), axis=-2, signed=signed),
            quantize_blocks(jnp.zeros((300, 2)), axis=-2, signed=signed),
        )
        assert same_bits(made, found) and not np.asarray(made.restore()).any()


def test_layers_adapters_and_padded_ranks_are_blocks_of_their_own() -> None:
    x = jnp.asarray(numbers((3, 600, 4), True))
    make = lambda x: quantize_blocks(x, axis=-2, signed=True)
    whole = make(x)
    one: Any = jax.tree.map(lambda leaf: leaf[1], whole)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(make(x[1])), strict=True)
    )
    padded = make(jnp.pad(x, [(0, 0), (0, 0), (0, 5)]))
    cut = jax.tree.map(lambda leaf: leaf[..., :4], padded)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True)
    )
    assert np.array_equal(jax.vmap(make)(x).restore(), whole.restore())


def test_a_number_costs_a_byte_and_a_64th() -> None:
    stored = quantize_blocks(jnp.ones((4096, 8)), axis=-2, signed=False)
    assert bytes_of(stored) == 4096 * 8 * (1 + 4 / BLOCK)
    tree = {"large": stored, "small": jnp.ones(3)}
    assert restored(tree)["large"].dtype == jnp.float32 and restored(tree)["small"] is tree["small"]
