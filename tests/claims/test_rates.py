"""Best rates by whole curves: what is asked of the lab, and how ratios and ranges are judged."""

import math

import pytest

from lab.null import NullLab
from lab.rates import LEVEL, SEEDS, by_rank, fitted, judge_range, over, point
from lab.setting import S
from lora_jax.statistics import Interval


def test_a_curve_is_fitted_over_its_grid_and_finds_the_best_rate():
    lab = NullLab("equal", 0)
    found = fitted(lab, S, -2)
    assert found.curve.losses.shape == (len(SEEDS), 8) and found.best.level == LEVEL
    # Where the made-up world has it: half of where a grid begins.
    assert found.best.rate.value == pytest.approx(4e-3, rel=0.15) and not found.best.on_edge
    assert list(found.at(0)) == list(found.curve.losses[:, 2])


def test_ranks_share_what_both_scalings_have_in_common():
    lab = NullLab("equal", 0)
    standard, stable = by_rank(lab, "standard"), by_rank(lab, "rslora")
    assert standard[1].setting == stable[1].setting and standard[4].setting != stable[4].setting
    assert stable[64].curve.rates[0] < standard[64].curve.rates[0]


def test_an_arm_may_be_tuned_by_another_figure_than_its_validation_loss():
    arm = NullLab("equal", 0).arm("a", S, by=lambda run: math.log(run.rate / 1e-3) ** 2)
    assert arm.rate == pytest.approx(1e-3, rel=0.01)


def test_a_ratio_of_ratios_adds_distances_as_squares():
    found = over(Interval(8, 4, 16), Interval(2, 1, 4))
    far = 2 ** math.sqrt(2)
    assert found == pytest.approx((4, 4 / far, 4 * far))
    assert over(Interval(8, 0, math.inf), Interval(2, 1, 4))[1:] == (0, math.inf)
    assert point(64, found) == [64, *found] and point(64, Interval(4, 0, 5)) == [64, 4]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ((8, 6, 12), "reproduced"),
        ((8, 4, 12), "inconclusive"),
        ((3, 2, 4), "not reproduced"),
        ((30, 21, 50), "not reproduced"),
        ((8, 0, math.inf), "inconclusive"),
    ],
)
def test_a_figure_is_judged_by_where_its_interval_lies(found, verdict):
    assert judge_range(found, 5, 20) == verdict
