"""Boxes: Linen reads the weight they compute; they take part in lifted transformations and cannot
be written.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta

from lora_jax.core.boxes import Boxed, is_boxed
from lora_jax.core.lowrank import Adapted, LowRank
from lora_jax.core.trained_weight import TrainedWeight


def low_rank(
    stack: tuple[int, ...] = (), rows: int = 4, out: int = 3, rank: int = 2, **rest: Any
) -> LowRank:
    key = jax.random.split(jax.random.key(0))
    a, b = (
        jax.random.normal(key[0], (*stack, rows, rank)),
        jax.random.normal(key[1], (*stack, rank, out)),
    )
    return LowRank(a=a, b=b, scale=jnp.full((*stack, rank), 0.5), **rest)


def test_a_module_reads_the_weight_that_a_box_computes() -> None:
    low, base = low_rank(), jnp.ones((4, 3))
    x = jnp.arange(8.0).reshape(2, 4)
    seen = nn.Dense(3, use_bias=False).apply(
        {"params": {"kernel": Adapted(base=base, lora=low)}}, x
    )
    assert np.allclose(seen, x @ (base + 0.5 * low.a @ low.b), rtol=1e-6)
    assert np.array_equal(
        nn.Dense(3, use_bias=False).apply({"params": {"kernel": TrainedWeight(value=base)}}, x),
        x @ base,
    )


def test_a_box_of_the_wrong_shape_is_refused_by_linen() -> None:
    with pytest.raises(Exception, match="kernel"):
        nn.Dense(3, use_bias=False).apply(
            {"params": {"kernel": TrainedWeight(value=jnp.ones((5, 3)))}}, jnp.ones((2, 4))
        )


@pytest.mark.parametrize("in_axes", [(0,), (0, 1), (1,)])
def test_the_update_of_a_kernel_with_many_axes_is_laid_out_by_its_input_axes(
    in_axes: tuple[int, ...],
) -> None:
    shape = (4, 5, 3)
    rows = int(np.prod([shape[axis] for axis in in_axes]))
    low = low_rank((2,), rows, 60 // rows, in_axes=in_axes)
    seen = Adapted(base=jnp.zeros((2, *shape)), lora=low).unbox()
    delta = np.asarray(low.delta())
    outs = [axis for axis in range(3) if axis not in in_axes]
    expected = delta.reshape(2, *(shape[axis] for axis in in_axes), *(shape[axis] for axis in outs))
    expected = np.moveaxis(expected, range(1, 4), [axis + 1 for axis in (*in_axes, *outs)])
    assert np.allclose(seen, expected)


def test_the_sum_is_made_in_float32_and_rounded_once() -> None:
    base = jnp.full((4, 3), 256.0, jnp.bfloat16)  # One unit in the last place is 2.
    low = low_rank().replace(
        a=jnp.ones((4, 2)), b=jnp.full((2, 3), 0.75)
    )  # Adds 0.75: two bfloat16 sums would lose or double it.
    box = Adapted(base=base, lora=low)
    assert box.unbox().dtype == jnp.bfloat16 and np.array_equal(
        box.unbox().astype(np.float32), np.full((4, 3), 256.0)
    )
    big = Adapted(base=base, lora=low.replace(scale=jnp.full(2, 1.0)))  # 257.5 rounds to 258.
    assert np.array_equal(big.unbox().astype(np.float32), np.full((4, 3), 258.0))


def test_boxes_keep_their_axes_and_refuse_to_be_written() -> None:
    box = Adapted(base=jnp.ones((4, 3)), lora=low_rank())
    assert box.add_axis(0, {}) is box and box.remove_axis(0, {}) is box
    assert box.shape == (4, 3) and box.dtype == jnp.float32
    with pytest.raises(
        TypeError,
        match="Adapted is read-only: a module tried to write a weight that is frozen or adapted",
    ):
        box.replace_boxed(jnp.ones((4, 3)))


def test_only_our_boxes_count_as_boxes() -> None:
    assert (
        is_boxed(TrainedWeight(value=jnp.ones(2)))
        and not is_boxed(jnp.ones(2))
        and not is_boxed(meta.Partitioned(jnp.ones(2), ("a",)))
    )
    with pytest.raises(NotImplementedError):
        Boxed().unbox()
