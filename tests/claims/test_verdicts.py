"""Intervals cover what they should, pairing narrows them, and verdicts follow from the interval and
the signs alone.
"""

import numpy as np
import pytest

from lab.verdicts import judge_all, judge_effect, judge_equal, paired_losses
from lora_jax.statistics.interval import Interval


def test_intervals_cover_the_true_difference_as_often_as_they_say():
    dice = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        hard = dice.exponential(size=300)
        found = paired_losses(hard + dice.normal(0.1, 0.5, 300), hard, resamples=400, seed=trial)
        hits += found.low <= 0.1 <= found.high
    # 95 %, with four standard errors of 200 trials.
    assert abs(hits / 200 - 0.95) < 0.062


def test_pairing_takes_out_what_the_arms_share():
    dice = np.random.default_rng(1)
    hard = 10 * dice.exponential(size=500)
    paired = paired_losses(hard + 0.1, hard)
    assert paired.value == pytest.approx(0.1) and paired.high - paired.low < 1e-9
    apart = paired_losses(hard + 0.1, dice.permutation(hard))
    assert apart.high - apart.low > 1


def test_seeds_are_averaged_before_examples_are_drawn_and_weights_count_tokens():
    first, second = np.array([[1.0, 5.0], [3.0, 5.0]]), np.zeros((2, 2))
    assert paired_losses(first, second).value == pytest.approx(3.5)
    assert paired_losses(first, second, weights=[3, 1]).value == pytest.approx((3 * 2 + 5) / 4)


def test_arms_of_other_examples_or_that_diverged_have_no_interval():
    with pytest.raises(ValueError, match="same examples"):
        paired_losses(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="diverged"):
        paired_losses([1.0, np.nan], [1.0, 1.0])


@pytest.mark.parametrize(
    ("signs", "interval", "verdict"),
    [
        ((1, 1, 1), (0.5, 0.1, 0.9), "reproduced"),
        ((1, -1, 1), (0.5, 0.1, 0.9), "inconclusive"),
        ((1, 1, 1), (0.5, -0.1, 0.9), "inconclusive"),
        ((-1, -1, -1), (-0.5, -0.9, -0.1), "not reproduced"),
        ((1, 1, 1), (0.01, -0.01, 0.02), "not reproduced"),
    ],
)
def test_an_effect_needs_every_seed_and_an_interval_above_zero(signs, interval, verdict):
    assert judge_effect(signs, Interval(*interval), tolerance=0.05) == verdict


def test_equality_needs_the_interval_within_the_tolerance():
    assert judge_equal(Interval(0, -0.1, 0.1), tolerance=0.2) == "reproduced"
    assert judge_equal(Interval(0.3, 0.25, 0.4), tolerance=0.2) == "not reproduced"
    assert judge_equal(Interval(0.1, -0.1, 0.4), tolerance=0.2) == "inconclusive"
    with pytest.raises(ValueError, match="3 seeds or more, got 2"):
        judge_effect((1, 1), Interval(1, 1, 1), tolerance=0.1)


def test_a_claim_of_parts_holds_if_all_do_and_falls_if_one_does():
    assert judge_all(["reproduced", "reproduced"]) == "reproduced"
    assert judge_all(["reproduced", "inconclusive"]) == "inconclusive"
    assert judge_all(["inconclusive", "not reproduced"]) == "not reproduced"
