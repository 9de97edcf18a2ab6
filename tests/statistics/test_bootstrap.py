"""Bootstrap intervals and paired tests: known distributions, textbook values, and what bad input
gets.
"""

import math

import numpy as np
import pytest

from lora_jax.statistics.bootstrap import (
    bootstrap,
    mean_interval,
    paired_bootstrap,
    paired_means,
)
from lora_jax.statistics.interval import over_seeds
from lora_jax.statistics.paired import mcnemar


def test_the_interval_of_a_share_is_the_binomial_one():
    scores = np.r_[np.ones(80), np.zeros(20)]
    interval = mean_interval(scores, resamples=4000)
    # Normal approximation: 0.8 +- 1.96 * 0.04; two resolutions of 1/100 and the bootstrap's own
    # noise of 4,000 resamples.
    assert interval.value == pytest.approx(0.8, abs=1e-12) and interval.low == pytest.approx(
        0.7216, abs=0.02
    )
    assert interval.high == pytest.approx(0.8784, abs=0.02)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    samples = rng.exponential(1.0, (200, 100))
    inside = [
        low <= 1.0 <= high
        for _, low, high in (mean_interval(x, resamples=300, seed=n) for n, x in enumerate(samples))
    ]
    # 95 % of 200 less what a percentile interval of a skewed distribution loses, and three binomial
    # deviations.
    assert 0.87 <= np.mean(inside) <= 1.0


def test_a_general_statistic_and_the_quick_mean_agree():
    rng = np.random.default_rng(1)
    scores, weights = rng.standard_normal(50), rng.integers(1, 9, 50).astype(float)
    slow = bootstrap(
        lambda rows: float((scores * weights)[rows].sum() / weights[rows].sum()),
        50,
        resamples=200,
        seed=3,
    )
    np.testing.assert_allclose(
        slow, mean_interval(scores, weights, resamples=200, seed=3), rtol=1e-12
    )


def test_the_paired_test_sees_a_small_steady_difference_that_unpaired_intervals_hide():
    rng = np.random.default_rng(2)
    first = rng.standard_normal(200) * 10
    second = first - 0.5 - 0.5 * rng.standard_normal(200)
    apart = mean_interval(first).low > mean_interval(second).high
    test = paired_means(first, second)
    assert not apart and test.p < 0.01 and 0 < test.low < test.value < test.high
    slow = paired_bootstrap(
        lambda rows: float(first[rows].mean()), lambda rows: float(second[rows].mean()), 200
    )
    np.testing.assert_allclose(test, slow, atol=1e-12)
    assert paired_means(np.r_[1.0, 0.0], np.zeros(2), np.r_[3.0, 1.0]).value == 0.75
    # No resample is as far: the observed one is, and p is never 0.
    assert paired_means(first, first - 9, resamples=99).p == 0.01


def test_equal_models_are_not_told_apart_and_p_values_are_uniform_under_no_difference():
    same = np.arange(30.0)
    assert paired_means(same, same).p == 1.0
    rng = np.random.default_rng(3)
    ps = [paired_means(*rng.standard_normal((2, 60)), resamples=200, seed=n).p for n in range(200)]
    # 10 % of 200 tests, three binomial deviations and the bootstrap's slight optimism.
    assert 0.03 <= np.mean(np.array(ps) < 0.1) <= 0.18


def test_mcnemar_is_the_exact_binomial_test():
    first, second = (
        np.array([True] * 9 + [False] * 1 + [True] * 40),
        np.array([False] * 9 + [True] * 1 + [True] * 40),
    )
    test = mcnemar(first, second)
    # 2 * (C(10,0) + C(10,1)) / 2^10
    assert (test.first_only, test.second_only) == (9, 1) and test.p == pytest.approx(22 / 1024)
    assert mcnemar(first, first).p == 1.0


def test_seeds_get_students_interval():
    spread = over_seeds([0.90, 0.92, 0.94])
    # t(0.975, 2) = 4.303; deviation 0.02.
    assert spread.deviation == pytest.approx(0.02) and spread.high - spread.mean == pytest.approx(
        4.303 * 0.02 / math.sqrt(3), rel=1e-3
    )
    assert math.isnan(over_seeds([0.9]).deviation)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_interval(np.zeros(0)), "at least one example"),
        (lambda: mean_interval(np.ones(3), resamples=0), "at least one example and one resample"),
        (lambda: mean_interval(np.ones(3), level=95.0), "level must be above 0 and below 1"),
        (
            lambda: paired_means(np.ones(3), np.ones(4)),
            "the same examples for both models, got 3 and 4",
        ),
        (lambda: mcnemar(np.ones(3, bool), np.ones(4, bool)), "the same examples"),
        (lambda: over_seeds([]), "at least one run"),
    ],
)
def test_what_has_no_answer_is_an_error(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_score_that_is_not_there_is_no_evidence():
    """A correlation of constants is NaN, in all examples or in some resamples."""
    none = paired_bootstrap(lambda rows: math.nan, lambda rows: 1.0, 5, resamples=20)
    assert all(math.isnan(value) for value in none)
    # 1 on the examples as they are, and of every resample that lacks the first one nothing.
    some = lambda rows: 1.0 if 0 in rows else math.nan
    found = paired_bootstrap(some, lambda rows: 0.0, 3, resamples=1000)
    # Of three draws from three, none is the first in (2/3)^3 = 0.296 of resamples: 0.03 are two
    # standard deviations.
    assert found.value == 1.0 and found.p == pytest.approx((2 / 3) ** 3, abs=0.03)
