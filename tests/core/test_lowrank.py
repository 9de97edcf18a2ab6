"""Low-rank factors: the scale vector holds alpha, rank, padding and layers, and padding changes
nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax import LoraSpec
from lora_jax.core import LowRank
from lora_jax.core.init import initialize


def random(stack: tuple[int, ...] = (2,), rows: int = 5, out: int = 3, rank: int = 2) -> LowRank:
    key = jax.random.split(jax.random.key(0), 3)
    scale = jax.random.uniform(key[2], (*stack, rank), minval=0.5, maxval=2.0)
    return LowRank(
        a=jax.random.normal(key[0], (*stack, rows, rank)),
        b=jax.random.normal(key[1], (*stack, rank, out)),
        scale=scale,
    )


def test_the_effective_scale_is_alpha_over_rank_over_its_root_or_alpha_itself() -> None:
    assert (
        LoraSpec(8, 16.0).effective_scale == 2.0
        and LoraSpec(16, 8.0, "rslora").effective_scale == 2.0
        and LoraSpec(16, 2.0, "fixed").effective_scale == 2.0
    )
    assert np.array_equal(
        initialize(jax.random.key(0), (3,), 20, 20, LoraSpec(16, 8.0, "rslora")).scale,
        np.full((3, 16), 2.0),
    )


def test_the_update_is_a_times_scale_times_b() -> None:
    low = random()
    expected = np.einsum(
        "lir,lr,lro->lio", *(np.asarray(x, np.float64) for x in (low.a, low.scale, low.b))
    )
    assert np.allclose(low.delta(), expected, rtol=1e-5)
    half = low.replace(a=low.a.astype(jnp.bfloat16), b=low.b.astype(jnp.bfloat16))
    assert half.delta().dtype == jnp.float32 and half.delta(jnp.bfloat16).dtype == jnp.bfloat16


def test_padding_keeps_the_update_and_trimming_undoes_it() -> None:
    # Of eighths sums are exact, in whatever order a product of six columns adds them.
    low = jax.tree.map(lambda x: jnp.round(8 * x) / 8, random())
    wide = low.with_rank(6)
    assert (
        wide.rank == 6
        and np.array_equal(wide.delta(), low.delta())
        and wide.active_parameters() == low.active_parameters()
    )
    back = wide.trim()
    assert all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(low), strict=True)
    )
    assert np.array_equal(low.with_rank(2).a, low.a)
    with pytest.raises(
        ValueError,
        match="an adapter of rank 2 cannot be padded to rank 1: the target must not be smaller",
    ):
        low.with_rank(1)


def test_trimming_keeps_a_column_that_one_layer_uses_and_gives_none_if_none_does() -> None:
    low = random()
    one = low.replace(scale=jnp.asarray([[0.0, 0.0], [0.0, 1.0]]))
    assert one.trim().rank == 1 and np.array_equal(one.trim().a[..., 0], low.a[..., 1])
    assert one.active_parameters() == 5 + 3
    assert low.replace(scale=jnp.zeros((2, 2))).trim() is None
