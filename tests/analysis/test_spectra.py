"""The spectrum from the factors is that of the dense update, and ranks count what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.analysis.spectra import (
    dense_svd,
    effective_rank,
    rank_beside_gaussian,
    rank_for,
    update_svd,
)
from lora_jax.core.init import initialize
from lora_jax.core.lowrank import LoraSpec


def factors(spec: LoraSpec, stack: tuple[int, ...] = (3,)):
    weight = jax.random.normal(jax.random.key(1), (*stack, 24, 20))
    low = initialize(jax.random.key(0), stack, 24, 20, spec, weight=weight)
    return low.replace(b=low.b + jax.random.normal(jax.random.key(2), low.b.shape))


@pytest.mark.parametrize(
    "spec",
    [
        LoraSpec(4),
        LoraSpec(4, scaling="rslora"),
        LoraSpec(4, alpha=4.0, init="pissa"),
        LoraSpec(5, variant="vera"),
    ],
    ids=str,
)
def test_the_spectrum_of_the_factors_is_that_of_the_dense_update(spec):
    low = factors(spec)
    small, dense = update_svd(low), dense_svd(low.delta())
    n = small.s.shape[-1]
    # delta() is formed in float32: its rounding, relative to the largest singular value.
    np.testing.assert_allclose(small.s, dense.s[:, :n], atol=2e-6 * dense.s.max())
    np.testing.assert_allclose(
        (small.u * small.s[:, None]) @ small.vt, low.delta(), atol=2e-6 * dense.s.max()
    )
    np.testing.assert_allclose(
        np.swapaxes(small.u, -2, -1) @ small.u, np.broadcast_to(np.eye(n), (3, n, n)), atol=1e-12
    )


def test_padded_columns_add_zeros_to_the_spectrum():
    low = factors(LoraSpec(2))
    wide = update_svd(low.with_rank(5)).s
    np.testing.assert_allclose(wide[:, :2], update_svd(low).s, rtol=1e-12)
    assert (wide[:, 2:] < 1e-12 * wide[:, :1]).all()


def test_the_dense_update_is_never_formed():
    shape = jax.eval_shape(lambda: initialize(jax.random.key(0), (), 2**20, 2**20, LoraSpec(2)))
    assert shape.a.shape == (2**20, 2)
    low = initialize(jax.random.key(0), (), 2**17, 2**17, LoraSpec(1))
    # The dense update would take 64 GB.
    assert update_svd(low.replace(b=jnp.ones_like(low.b))).s.shape == (1,)


def test_ranks_of_known_spectra():
    s = np.array([[1.0, 1, 1, 1, 1, 1, 1, 1, 1, 1], [10.0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0.0] * 10])
    assert rank_for(s).tolist() == [9, 1, 0] and rank_for(s, 1.0).tolist() == [10, 1, 0]
    np.testing.assert_allclose(effective_rank(s), [10, 1, 0])
    assert rank_for(np.array([3.0, 1.0]), 0.9) == 1 and rank_for(np.array([3.0, 1.0]), 0.91) == 2
    with pytest.raises(ValueError, match="share must be above 0 and at most 1, got 0"):
        rank_for(s, 0)


def test_ranks_do_not_depend_on_the_scale_and_no_mean_rank_exceeds_the_count():
    s = np.sort(np.random.default_rng(0).exponential(size=(5, 12)))[:, ::-1]
    for rank in (rank_for, effective_rank):
        np.testing.assert_allclose(rank(s), rank(1e-6 * s), rtol=1e-9)
        assert (rank(s) <= 12).all() and (rank(s) >= 1).all()


@pytest.mark.parametrize("measure", [rank_for, effective_rank])
@pytest.mark.parametrize(("shape", "rank"), [((40, 40), None), ((24, 96), None), ((60, 30), 6)])
def test_a_gaussian_matrix_has_the_rank_of_gaussian_matrices(shape, rank, measure):
    dice = np.random.default_rng(1)
    draw = lambda *of: dice.standard_normal((40, *of))
    drawn = draw(*shape) if rank is None else draw(shape[0], rank) @ draw(rank, shape[1])
    found = rank_beside_gaussian(dense_svd(drawn).s, shape, rank=rank, measure=measure, samples=200)
    # Means of 40 and of 200 draws: four standard errors.
    error = 4 * found.deviation * np.sqrt(1 / 40 + 1 / 200)
    assert abs(found.rank.mean() - found.chance) < error
    assert found.rank.std() == pytest.approx(found.deviation, rel=0.5, abs=0.3)
    np.testing.assert_allclose(found.ratio, found.rank / found.chance)


def test_shape_alone_makes_mlp_matrices_of_higher_rank_and_structure_lowers_the_ratio():
    dice = np.random.default_rng(2)
    square, wide = dice.standard_normal((64, 64)), dice.standard_normal((64, 256))
    ranks = [rank_beside_gaussian(dense_svd(m).s, m.shape) for m in (square, wide)]
    assert ranks[1].rank / ranks[0].rank > 1.2
    assert ranks[1].ratio / ranks[0].ratio == pytest.approx(1, abs=0.1)
    falling = rank_beside_gaussian(0.8 ** np.arange(64), (64, 256))
    assert falling.rank == 6 and falling.ratio < 0.3
    with pytest.raises(ValueError, match="rank from 1 to 64, got rank=65"):
        rank_beside_gaussian(np.ones(3), (64, 256), rank=65)
