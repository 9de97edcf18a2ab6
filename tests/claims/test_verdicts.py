"""Verdicts follow from the interval and from limits alone; a real effect that is too small to
matter is not one.
"""

import numpy as np
import pytest

from lab.contrast import OverSeeds, of_losses
from lab.verdicts import judge_effect, judge_equal, judge_not_worse


def found(value: float, spread: float = 0.01, seeds: int = 5):
    """A difference of this value whose 95 % interval is about 2.5 spreads on each side."""
    each = value + spread * np.array([-1, 1, -0.5, 0.5, 0])[:seeds]
    return OverSeeds(tuple(each))


@pytest.mark.parametrize(
    ("value", "spread", "smallest", "verdict"),
    [
        (0.5, 0.01, 0.1, "reproduced"),
        (0.5, 0.01, 0.0, "reproduced"),
        (0.05, 0.01, 0.1, "not reproduced"),  # there, and too small to matter
        (0.095, 0.01, 0.1, "inconclusive"),
        (0.1, 1.0, 0.1, "inconclusive"),
        (-0.5, 0.01, 0.0, "opposite"),
        (-0.5, 0.01, 0.1, "opposite"),
    ],
)
def test_an_effect_lies_above_zero_and_matters(value, spread, smallest, verdict):
    assert judge_effect(found(value, spread), smallest) == verdict


def test_equality_needs_the_interval_within_the_margin():
    assert judge_equal(found(0.0), 0.1) == "reproduced"
    assert judge_equal(found(0.2), 0.1) == judge_equal(found(-0.2), 0.1) == "not reproduced"
    assert judge_equal(found(0.1), 0.1) == "inconclusive"


def test_as_good_as_needs_one_side_alone():
    assert judge_not_worse(found(-5.0), 0.1) == "reproduced"
    assert judge_not_worse(found(0.2), 0.1) == "not reproduced"
    assert judge_not_worse(found(0.1), 0.1) == "inconclusive"


def test_a_verdict_needs_three_seeds_and_a_margin():
    with pytest.raises(ValueError, match="3 seeds or more, got 2"):
        judge_effect(found(1.0, seeds=2))
    with pytest.raises(ValueError, match="A margin is above 0"):
        judge_equal(found(0.0), 0.0)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        judge_effect(found(0.0), -1.0)


def test_equal_arms_get_a_false_winner_as_often_as_intervals_say():
    dice, wins = np.random.default_rng(0), 0
    for _ in range(200):
        hard = dice.normal(3, 0.5, 120)
        arms = [
            hard + dice.normal(0, 0.02, (5, 1)) + dice.normal(0, 0.2, (5, 120)) for _ in range(2)
        ]
        effect = of_losses(((1.0, arms[0]), (-1.0, arms[1])), np.ones(120))
        wins += judge_effect(effect) == "reproduced"
    # One-sided 2.5 %, with three standard errors of 200 trials.
    assert wins <= 0.025 * 200 + 3 * (0.025 * 0.975 * 200) ** 0.5
