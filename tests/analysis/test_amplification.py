"""The amplification factor on matrices whose answer is known, and the order of its neighbours."""

import numpy as np
import pytest

from lora_jax.analysis.amplification import amplification_of, overlap_with_top, projections
from lora_jax.analysis.spectra import dense_svd

W = np.diag(np.arange(20.0, 0.0, -1))


def rank_one(i: int, j: int, size: float) -> np.ndarray:
    update = np.zeros((20, 20))
    update[i, j] = size
    return update


def test_an_update_along_w_amplifies_by_its_size_over_w_there():
    found = amplification_of(W, dense_svd(rank_one(15, 15, 10.0)))
    assert (
        found.rank == 1
        and found.projected == pytest.approx(5.0)
        and found.factor == pytest.approx(2.0)
    )
    assert found.top == pytest.approx(20.0) and found.update == pytest.approx(10.0)
    assert found.weight == pytest.approx(np.linalg.norm(W))
    assert projections(W, dense_svd(rank_one(15, 15, 10.0)), rank=1) == pytest.approx([5.0])
    # Directions that the update has not are none of it, however many are asked for.
    assert amplification_of(W, dense_svd(rank_one(15, 15, 10.0)), rank=3) == found


def test_an_update_where_w_is_nothing_amplifies_without_bound():
    assert amplification_of(W, dense_svd(rank_one(3, 9, 1.0))).factor == float("inf")


def test_the_top_directions_of_w_itself_are_the_largest_and_chance_the_smallest():
    w = np.random.default_rng(0).standard_normal((64, 64)) @ np.diag(0.9 ** np.arange(64))
    own = dense_svd(w)
    update = (own.u[:, 8:12]) @ own.vt[8:12]
    found = amplification_of(w, dense_svd(update), rank=4, samples=32)
    assert found.random < found.projected < found.top
    assert found.ratio == found.projected / found.random and found.z > 3
    assert found.projected == pytest.approx(np.linalg.norm(own.s[8:12]))


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_random_update_has_the_ratio_1_at_every_rank(rank):
    dice = np.random.default_rng(rank)
    # A weight with strong directions, whose factor falls with rank for any update.
    w = dice.standard_normal((32, 24)) @ np.diag(0.8 ** np.arange(24))
    updates = [
        dice.standard_normal((32, rank)) @ dice.standard_normal((rank, 24)) for _ in range(30)
    ]
    found = [amplification_of(w, dense_svd(one), samples=40) for one in updates]
    spread = np.mean([row.random_deviation / row.random for row in found])
    # Four standard errors: 30 updates beside one mean of 40 random draws (one seed).
    error = 4 * spread * np.sqrt(1 / 30 + 1 / 40)
    assert abs(np.mean([row.ratio for row in found]) - 1) < error
    assert np.std([row.z for row in found]) == pytest.approx(1, abs=0.5)
    # E ||U^T W V||^2 is the share of a random pair of subspaces, rank^2 / (in out), of ||W||^2.
    row = found[0]
    assert row.random**2 + row.random_deviation**2 == pytest.approx(
        row.weight**2 * rank**2 / (32 * 24), rel=0.4
    )


def test_overlap_with_the_top_of_w_is_one_inside_and_zero_outside():
    inside, outside = np.diag([1.0, 1, 0, 0, *[0.0] * 16]), np.diag([*[0.0] * 18, 1.0, 1.0])
    assert overlap_with_top(W, dense_svd(inside), share=0.2, rank=2) == pytest.approx(1.0)
    assert overlap_with_top(W, dense_svd(outside), share=0.2, rank=2) == pytest.approx(0.0)


def test_no_update_and_stacks_are_refused():
    with pytest.raises(ValueError, match="update is 0"):
        amplification_of(W, dense_svd(np.zeros((20, 20))))
    with pytest.raises(ValueError, match="takes one matrix"):
        amplification_of(W[None], dense_svd(W))
    with pytest.raises(ValueError, match="samples of 2 or more"):
        amplification_of(W, dense_svd(W), samples=1)
