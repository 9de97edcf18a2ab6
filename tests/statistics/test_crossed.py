"""Means over seeds and examples: the exact bootstrap of four scores, and coverage in simulations."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lora_jax.statistics.crossed import Crossed, crossed_mean


def test_the_error_is_that_of_all_resamples():
    """Two seeds and two examples: 4 draws of seeds times 4 of examples, all counted."""
    scores = np.array([[0.1, 0.7], [0.4, 0.2]])
    means = scores.mean(axis=1)
    stretched = scores + (math.sqrt(2) - 1) * (means - means.mean())[:, None]
    twice = list(itertools.product((0, 1), repeat=2))
    exact = np.std([stretched[np.ix_(i, j)].mean() for i in twice for j in twice])
    found = crossed_mean(scores, resamples=100_000)
    # A standard deviation of 100,000 draws is known to 0.2 %; three of these.
    assert found.error == pytest.approx(exact, rel=0.007)
    assert found.value == pytest.approx(0.35) and found.seed_error == pytest.approx(0.05)


def simulated(draw, seeds, examples, of_seed, value=0.0):
    """Scores with luck of the seed (its deviation, in those of the mean over examples alone), of
    the example and of each score, the last two of deviation 1.
    """
    luck = of_seed * math.sqrt(seeds / examples) * draw.standard_normal((seeds, 1))
    noise = draw.standard_normal((seeds, examples)) + draw.standard_normal(examples)
    return value + luck + noise


@pytest.mark.parametrize(("seeds", "of_seed"), [(2, 3.0), (3, 0.0), (3, 1.0), (3, 3.0), (8, 1.0)])
def test_intervals_cover_the_truth_over_other_seeds_and_other_examples(seeds, of_seed):
    draw = np.random.default_rng(seeds)
    many = [
        crossed_mean(simulated(draw, seeds, 60, of_seed), resamples=200, seed=n).interval()
        for n in range(400)
    ]
    # 0.965, 0.98, 0.988, 0.968 and 0.965, in this order; 0.93 is what is promised.
    assert np.mean([low <= 0.0 <= high for _, low, high in many]) >= 0.93


def test_p_is_what_the_interval_just_reaches_and_no_difference_is_rarely_called_one():
    draw = np.random.default_rng(0)
    found = crossed_mean(simulated(draw, 3, 60, 1.0, value=0.3))
    low, high = found.interval(1 - found.p)[1:]
    assert min(abs(low), abs(high)) < 1e-9
    same = [crossed_mean(simulated(draw, 3, 60, 1.0), resamples=200, seed=n) for n in range(300)]
    # 5 % of 300 are 15; the quantile errs to the wide side.
    assert sum(one.p < 0.05 for one in same) <= 15


def test_a_difference_of_the_margin_is_rarely_called_smaller_and_none_is_often():
    draw = np.random.default_rng(1)
    many = lambda value: [
        crossed_mean(simulated(draw, 3, 60, 1.0, value), resamples=200, seed=n).p_within(1.2)
        for n in range(200)
    ]
    assert np.mean(np.array(many(1.2)) < 0.05) <= 0.05
    assert np.mean(np.array(many(0.0)) < 0.05) >= 0.7


def test_many_examples_and_no_luck_of_seeds_leave_the_normal_interval():
    found = Crossed(0.5, error=0.1, seed_error=0.0, seeds=3, examples=100_000)
    # To the digits to which Student's t at 99,999 degrees is normal.
    assert found.interval().high == pytest.approx(0.5 + 0.1 * stats.norm.ppf(0.975), rel=1e-4)
    assert found.p == pytest.approx(2 * stats.norm.sf(5), rel=3e-3)
    by_seeds = Crossed(0.5, error=0.1, seed_error=0.1, seeds=3, examples=100_000)
    assert by_seeds.interval().high == pytest.approx(0.5 + 0.1 * 4.302652729749464)
    assert by_seeds.p == pytest.approx(2 * stats.t.sf(5, 2), rel=1e-9)
    assert by_seeds.p_within(0.7) == pytest.approx(stats.t.sf(2, 2), rel=1e-9)


def test_a_loss_a_token_weighs_examples_by_their_tokens():
    losses, tokens = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 3.0])
    assert crossed_mean(losses, tokens).value == pytest.approx((1 + 6 + 3 + 12) / 8)


def test_equal_settings_have_no_difference_and_no_error():
    found = crossed_mean(np.zeros((3, 10)))
    assert found.p == 1.0 and found.error == 0.0 and tuple(found.interval()) == (0, 0, 0)


@pytest.mark.parametrize(
    ("scores", "weights", "words"),
    [
        (np.zeros((1, 5)), None, "two or more seeds"),
        (np.zeros((2, 5)), np.ones(4), "a weight for each example"),
        (np.zeros((2, 0)), None, "an example with a weight above 0"),
    ],
)
def test_what_has_no_answer_is_an_error(scores, weights, words):
    with pytest.raises(ValueError, match=words):
        crossed_mean(scores, weights)
