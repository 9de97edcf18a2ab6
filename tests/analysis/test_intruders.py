"""A strong foreign direction is an intruder, a change along the base's own directions is none, and
scaling removes what was added.
"""

import numpy as np
import pytest

from lora_jax.analysis.intruders import (
    find_intruders,
    random_update,
    scale_intruders,
    shrink_controls,
)


@pytest.fixture
def base() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((48, 48)) / 7


def foreign(base: np.ndarray, size: float) -> np.ndarray:
    """A rank-one matrix in a direction that is spread over all directions of the base."""
    u, _, vt = np.linalg.svd(base)
    spread = np.ones(48) / np.sqrt(48)
    return size * np.outer(u @ spread, spread @ vt)


def test_a_weight_has_no_intruders_in_itself_or_in_its_own_directions_scaled(base):
    u, s, vt = np.linalg.svd(base)
    assert len(find_intruders(base, base)) == 0
    np.testing.assert_allclose(find_intruders(base, base).similarity, 1.0, atol=1e-9)
    assert len(find_intruders(base, (u * s**2) @ vt)) == 0


def test_a_weak_direction_of_the_base_that_became_the_strongest_is_no_intruder(base):
    u, _, vt = np.linalg.svd(base)
    found = find_intruders(base, base + 20.0 * np.outer(u[:, -1], vt[-1]), top=3)
    assert len(found) == 0 and found.similarity[0] == pytest.approx(1.0)


def test_a_strong_foreign_direction_is_an_intruder_and_a_weak_one_is_not(base):
    found = find_intruders(base, base + foreign(base, 20.0))
    assert found.indices == (0,) and found.similarity[0] < 0.3
    assert len(find_intruders(base, base + foreign(base, 0.01))) == 0


def test_scaling_an_intruder_to_nothing_takes_away_what_was_added(base):
    tuned = base + foreign(base, 20.0)
    assert np.array_equal(scale_intruders(base, tuned, keep=1.0), tuned)
    cleaned = scale_intruders(base, tuned, keep=0.0)
    # What stays is the base without its own part along the intruder.
    assert np.linalg.norm(cleaned - base) < 0.2 * np.linalg.norm(tuned - base)
    half = scale_intruders(base, tuned, keep=0.5)
    np.testing.assert_allclose(half, (tuned + cleaned) / 2, atol=1e-12)


def test_only_the_top_directions_are_looked_at(base):
    tuned = base + foreign(base, 20.0)
    assert len(find_intruders(base, tuned, top=1)) == 1
    with pytest.raises(ValueError, match="from 1 to 48"):
        find_intruders(base, tuned, top=49)
    with pytest.raises(ValueError, match="two matrices of one shape"):
        find_intruders(base, tuned[:, :3])
    with pytest.raises(ValueError, match="keep must be from 0"):
        scale_intruders(base, tuned, keep=1.5)


@pytest.mark.parametrize("keep", [0.75, 0.0])
def test_controls_take_away_as_much_as_shrinking_the_intruders(base, keep):
    tuned = base + foreign(base, 5.0) + 0.02 * np.random.default_rng(1).standard_normal((48, 48))
    found = find_intruders(base, tuned)
    changed = shrink_controls(base, tuned, keep=keep)
    assert len(found) == 1
    np.testing.assert_array_equal(
        changed["intruders"].weight, scale_intruders(base, tuned, keep=keep)
    )
    removed = (1 - keep) * np.linalg.svd(tuned, compute_uv=False)[0]
    # Of the update no more can be taken than it is.
    whole = min(removed, np.linalg.norm(tuned - base))
    assert [one.removed for one in changed.values()] == pytest.approx([removed, removed, whole])
    for one in changed.values():
        assert np.linalg.norm(tuned - one.weight) == one.removed
    # The others leave the intruder, and the whole update is shrunk along itself.
    intruder = np.linalg.svd(tuned)[2][0]
    np.testing.assert_allclose(changed["others"].weight @ intruder, tuned @ intruder, atol=1e-9)
    share = np.linalg.norm(changed["update"].weight - base) / np.linalg.norm(tuned - base)
    assert share == pytest.approx(1 - whole / np.linalg.norm(tuned - base))


def test_without_intruders_all_controls_change_nothing(base):
    for one in shrink_controls(base, base + 0.001).values():
        assert one.removed == 0.0
        np.testing.assert_array_equal(one.weight, base + 0.001)
    for one in shrink_controls(base, base).values():
        np.testing.assert_array_equal(one.weight, base)


def test_a_random_update_has_the_norm_and_the_rank_and_makes_intruders_by_them_alone(base):
    tuned = base + foreign(base, 20.0)
    counts = {}
    for rank in (1, 8, None):
        drawn = random_update(base, tuned, rank=rank) - base
        assert np.linalg.norm(drawn) == pytest.approx(20.0)
        assert np.linalg.matrix_rank(drawn) == (rank or 48)
        counts[rank] = len(find_intruders(base, base + drawn))
    # One direction of the whole norm is strong; the same norm over all directions is not.
    assert counts[1] == 1 and counts[8] == 8
    assert np.array_equal(random_update(base, base, rank=2), base)
    assert not np.array_equal(random_update(base, tuned), random_update(base, tuned, seed=1))
    with pytest.raises(ValueError, match="rank must be from 1 to 48"):
        random_update(base, tuned, rank=49)
    with pytest.raises(ValueError, match="Two matrices of one shape"):
        random_update(base, tuned[:, :3])
