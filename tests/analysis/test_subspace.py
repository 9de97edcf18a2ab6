"""phi is 1 on equal subspaces, does not see rotations, and has the mean that chance gives; the
same-seed trap is caught.
"""

import numpy as np
import pytest

from lora_jax.analysis.subspace import (
    input_directions,
    overlap_beyond_chance,
    phi,
    random_phi,
    shared_start,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_phi_is_one_on_one_subspace_and_zero_on_orthogonal_ones():
    u = np.eye(6)
    grid = phi(u[:, :3], u[:, :4])
    np.testing.assert_allclose(np.diag(grid), 1.0)  # float64, exact
    # A subspace that holds the other: 1 although they differ in size.
    assert grid[0, 3] == 1.0 and grid[2, 0] == 1.0
    assert phi(u[:, :2], u[:, 2:4])[-1, -1] == 0.0


def test_phi_is_between_zero_and_one_symmetric_and_blind_to_what_spans_the_subspaces():
    u, v = input_directions(normal(0, 40, 5)), input_directions(normal(1, 40, 8))
    grid = phi(u, v)
    assert grid.shape == (5, 8) and (grid >= 0).all() and (grid <= 1 + 1e-12).all()
    np.testing.assert_allclose(grid, phi(v, u).T, atol=1e-14)
    rotation = np.linalg.qr(normal(2, 5, 5))[0]
    assert phi(u @ rotation, v)[-1, -1] == pytest.approx(grid[-1, -1], abs=1e-12)


def test_directions_of_a_are_the_right_singular_vectors_of_the_papers_a():
    a = normal(0, 30, 4)  # (in, r); the paper's A is its transpose
    right = np.linalg.svd(a.T, full_matrices=False)[2]
    np.testing.assert_allclose(
        np.abs(np.sum(input_directions(a) * right.T, axis=0)), 1.0, atol=1e-12
    )
    assert input_directions(normal(1, 3, 30, 4), 2).shape == (3, 30, 2)
    with pytest.raises(ValueError, match="1 to 4 directions, got count=5"):
        input_directions(a, 5)


def test_phi_is_one_minus_the_squared_metric_over_p():
    u, v = input_directions(normal(3, 20, 3)), input_directions(normal(4, 20, 6))
    # Ham & Lee 2008, as LoRA's Appendix G has it: p less the squared cosines of the angles between.
    cosines = np.linalg.svd(u.T @ v, compute_uv=False)
    squared = 3 - (cosines**2).sum()
    assert phi(u, v)[-1, -1] == pytest.approx(1 - squared / 3, abs=1e-12)
    assert phi(u, u)[-1, -1] == pytest.approx(1, abs=1e-12)


def test_chance_gives_the_larger_size_over_the_dimension():
    assert random_phi(8, 64, 384) == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="1 to 16 directions, got 4 and 17"):
        random_phi(4, 17, 16)


@pytest.mark.parametrize(("i", "j", "dimension"), [(1, 3, 20), (4, 6, 20), (3, 12, 24), (7, 9, 12)])
def test_chance_has_the_mean_deviation_and_tail_of_random_subspaces(i, j, dimension):
    axes = np.eye(dimension)[:, :i]
    planes = np.linalg.qr(normal(6, 1000, dimension, j))[0]
    found = overlap_beyond_chance(np.broadcast_to(axes, (1000, dimension, i)), planes)
    drawn, chance, deviation = found.phi[:, -1, -1], found.chance[-1, -1], found.deviation[-1, -1]
    # Four standard errors of 1,000 draws; that of a deviation is 1 / sqrt(2 n) of it.
    assert abs(drawn.mean() - chance) < 4 * deviation / np.sqrt(1000)
    assert drawn.std() == pytest.approx(deviation, rel=0.09)
    assert chance == random_phi(i, j, dimension)
    # By chance z has the deviation 1, and p is uniform: of 1,000 draws by four standard errors.
    assert found.z[:, -1, -1].std() == pytest.approx(1, rel=0.09)
    for level in (0.01, 0.1, 0.5, 0.9):
        error = 4 * np.sqrt(level * (1 - level) / 1000)
        assert abs((found.p[:, -1, -1] < level).mean() - level) < error


def test_overlap_of_one_subspace_is_1_at_every_size_and_of_the_whole_space_tells_nothing():
    u = np.linalg.qr(normal(7, 24, 24))[0]
    found = overlap_beyond_chance(u, u)
    own = np.diag(found.share)
    np.testing.assert_allclose(own[:-1], 1.0)
    assert (np.diag(found.p)[:-1] < 1e-3).all() and (np.diag(found.z)[:-1] > 3).all()
    # With all 24 directions on a side phi is 1 whatever they are.
    assert (found.share[-1] == 0).all() and (found.z[:, -1] == 0).all() and (found.p[-1] == 1).all()
    # Orthogonal subspaces agree less than chance, which is told as well.
    apart = overlap_beyond_chance(u[:, :8], u[:, 8:16])
    assert apart.share[-1, -1] == pytest.approx(-0.5) and apart.p[-1, -1] > 0.999
    # Beyond chance does not saturate: 5 times chance of 0.5 would be 2.5.
    assert overlap_beyond_chance(u[:, :12], u[:, :12]).share[-1, -1] == pytest.approx(1.0)


def test_factors_of_one_seed_share_their_start_and_those_of_two_seeds_do_not():
    narrow, wide = normal(0, 128, 8), normal(0, 128, 8)
    other = normal(1, 128, 8)
    spread = overlap_beyond_chance(np.eye(128)[:, :8], other).deviation[-1, -1]
    assert shared_start(narrow, wide) > 30 * spread
    assert abs(shared_start(narrow, other)) < 4 * spread


def test_spaces_of_different_size_are_refused():
    with pytest.raises(ValueError, match="one space, got 4 and 5 inputs"):
        phi(np.eye(4), np.eye(5))
