"""First values of the factors: the published distributions, a zero update, and independence between
matrices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax import LoraSpec
from lora_jax.core.init import initialize

KEY = jax.random.key(0)


def test_kaiming_is_uniform_within_one_over_the_root_of_the_inputs() -> None:
    a = np.asarray(initialize(KEY, (), 400, 300, LoraSpec(64)).a)
    assert np.abs(a).max() <= 1 / 20 and np.abs(a).max() > 0.0499
    # A uniform distribution's deviation is the bound over sqrt 3; 25,600 draws give it to about
    # half a percent.
    assert a.std() == pytest.approx(0.05 / np.sqrt(3), rel=0.02) and abs(a.mean()) < 1e-3


def test_gaussian_has_deviation_one_over_the_rank() -> None:
    a = np.asarray(initialize(KEY, (), 400, 300, LoraSpec(64, init="gaussian")).a)
    assert a.std() == pytest.approx(1 / 64, rel=0.02)


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
@pytest.mark.parametrize("stack", [(), (3,), (2, 3)])
def test_new_factors_change_nothing_and_every_matrix_starts_elsewhere(
    init: str, stack: tuple[int, ...]
) -> None:
    low = initialize(KEY, stack, 6, 5, LoraSpec(2, init=init))
    assert (
        low.a.shape == (*stack, 6, 2)
        and low.b.shape == (*stack, 2, 5)
        and low.scale.shape == (*stack, 2)
    )
    assert low.dropout is None and not np.any(low.b) and not np.any(low.delta())
    matrices = np.asarray(low.a).reshape(-1, 12)
    assert len(np.unique(matrices, axis=0)) == len(matrices)


def test_layers_that_are_left_out_have_zero_scale_along_the_first_stack_axis() -> None:
    low = initialize(KEY, (3, 2), 6, 5, LoraSpec(2, alpha=4.0, layers=(0, 2)))
    assert np.array_equal(np.asarray(low.scale)[..., 0], [[2, 2], [0, 0], [2, 2]])
    assert not np.any(low.a[1]) and np.any(low.a[0])


def test_dropout_is_one_number_a_layer() -> None:
    assert np.array_equal(
        initialize(KEY, (3,), 6, 5, LoraSpec(2, dropout=0.25)).dropout, jnp.full(3, 0.25)
    )
    assert initialize(KEY, (), 6, 5, LoraSpec(2, dropout=0.25)).dropout.shape == ()


def test_the_largest_rank_is_the_smaller_side() -> None:
    assert initialize(KEY, (), 6, 5, LoraSpec(5)).rank == 5
    with pytest.raises(
        ValueError,
        match="Rank 6 is larger than the smaller side of a 6 x 5 weight: at most 5 columns can",
    ):
        initialize(KEY, (), 6, 5, LoraSpec(6))
