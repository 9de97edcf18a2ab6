"""Intervals and tests equal scipy's, or cases worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from lora_jax.statistics.interval import over_seeds, share_interval
from lora_jax.statistics.paired import (
    detectable_difference,
    holm,
    paired_test,
    pairs_needed,
    sign_flip_p,
)

FIRST = [0.81, 0.79, 0.83, 0.80, 0.82]
SECOND = [0.78, 0.79, 0.80, 0.79, 0.78]


def test_the_mean_interval_is_students():
    found = over_seeds(FIRST, level=0.9)
    # float64 sums of five numbers: a few units in the last place.
    assert (found.low, found.high) == pytest.approx(
        stats.t.interval(0.9, 4, np.mean(FIRST), stats.sem(FIRST)), rel=1e-12
    )
    assert (found.mean, found.runs) == (pytest.approx(0.81), 5)


def test_one_value_has_no_interval_and_none_is_an_error():
    found = over_seeds([0.5])
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high)
    with pytest.raises(ValueError, match="at least one"):
        over_seeds([])


def test_the_share_interval_is_wilsons_by_his_formula():
    z, n, p = stats.norm.ppf(0.975), 200, 0.9
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = share_interval(180, 200)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), rel=1e-9)
    assert share_interval(5, 5).low > 0.5 and share_interval(5, 5).high == pytest.approx(1)
    with pytest.raises(ValueError, match="6 of 5"):
        share_interval(6, 5)


def test_the_paired_test_is_scipys_and_its_interval_holds_what_the_test_does_not_reject():
    found, reference = paired_test(FIRST, SECOND), stats.ttest_rel(FIRST, SECOND)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-12)
    limits = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high), rel=1e-12)
    assert paired_test(FIRST, [value - found.low for value in FIRST]).difference == pytest.approx(
        found.low
    )
    shifted = paired_test(FIRST, [value + found.low for value in SECOND])
    assert shifted.p == pytest.approx(0.05, rel=1e-9)


def test_sign_flips_are_counted_by_hand():
    # Sums of +-1, +-2, +-3 as far from 0 as 6: two of eight. As far as 4 (= 1 + 3 + ... with one
    # sign less): 1,2,3 and -1,2,3 and their mirrors.
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    assert sign_flip_p([-1, 2, 3]) == 4 / 8
    assert sign_flip_p([0, 0]) == 1


def test_sign_flips_equal_scipys_permutation_test():
    differences = np.array(FIRST) - np.array(SECOND)
    reference = stats.permutation_test(
        (differences,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(differences) == pytest.approx(reference.pvalue)


def test_many_differences_are_drawn_and_never_give_zero():
    assert sign_flip_p(np.ones(40)) == pytest.approx(1 / 10_001)
    balanced = np.random.default_rng(0).normal(size=40)
    # Against the t-test: 10,000 draws have a standard error of 0.005 at p = 0.5, and the two tests
    # differ little at n = 40.
    assert sign_flip_p(balanced) == pytest.approx(stats.ttest_1samp(balanced, 0).pvalue, abs=0.03)


def test_equal_differences_are_judged_by_their_signs():
    found = paired_test([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    assert found.p == found.p_signs == 2 / 8
    assert paired_test([0.5, 0.6], [0.5, 0.6]).p == 1


def test_a_single_pair_supports_nothing():
    found = paired_test([0.9], [0.1])
    assert found.difference == pytest.approx(0.8) and math.isnan(found.p) and math.isnan(found.low)
    with pytest.raises(ValueError, match="one length"):
        paired_test([1.0], [1.0, 2.0])


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made to rise: .04 .06 .06 .06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([0.01, 0.02], family=10) == pytest.approx([0.1, 0.18])


def test_holm_skips_what_could_not_be_tested():
    adjusted = holm([0.01, float("nan"), 0.02])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.02]) and np.isnan(adjusted[1])
    with pytest.raises(ValueError, match="cannot hold 2"):
        holm([0.1, 0.2], family=1)


def test_holm_keeps_the_share_of_false_alarms():
    """Twenty true null hypotheses: at least one adjusted p below 0.05 in at most 5% of the
    families.
    """
    random = np.random.default_rng(0)
    alarms = np.mean([holm(random.uniform(size=20)).min() < 0.05 for _ in range(2000)])
    # Exactly 1 - (1 - .05/20)^20 = 4.88%; the standard error over 2000 families is 0.5%.
    assert alarms == pytest.approx(0.0488, abs=0.015)


def test_the_detectable_difference_is_found_as_often_as_promised():
    random, spread, count = np.random.default_rng(1), 0.01, 8
    wanted = detectable_difference(spread, count)
    found = np.mean(
        [
            stats.ttest_1samp(random.normal(wanted, spread, count), 0).pvalue < 0.05
            for _ in range(2000)
        ]
    )
    assert found == pytest.approx(0.8, abs=0.027)  # three standard errors of 0.9%
    assert detectable_difference(0.01, 1) == math.inf


@pytest.mark.parametrize(("difference", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_so_many_pairs_are_needed_as_tables_of_power_say(difference, pairs):
    """R: power.t.test(delta=difference, sd=1, power=0.8, type="paired"), rounded up."""
    assert pairs_needed(difference, 1.0) == pairs == pairs_needed(-2 * difference, 2.0)
    assert detectable_difference(1.0, pairs) <= difference < detectable_difference(1.0, pairs - 1)


def test_no_number_of_pairs_shows_what_is_not_there_and_two_show_what_never_varies():
    assert pairs_needed(0.0, 1.0) is None and pairs_needed(0.0, 0.0) is None
    assert pairs_needed(0.3, 0.0) == 2 and pairs_needed(1e6, 1.0) == 2


@pytest.mark.parametrize("margin", [0.01, 0.05, 0.2])
def test_equivalence_is_the_larger_of_two_one_sided_tests(margin):
    differences = np.array(FIRST) - np.array(SECOND)
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    found = paired_test(FIRST, SECOND)
    assert found.p_within(margin) == pytest.approx(max(below, above), rel=1e-9)
    wide = paired_test(FIRST, SECOND, level=0.9)
    assert (found.p_within(margin) < 0.05) == (-margin < wide.low and wide.high < margin)


def test_equivalence_of_differences_without_spread_goes_by_their_number():
    found = paired_test([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert found.p_within(0.1) == 1 / 8
    assert paired_test([0.5, 0.6, 0.7], [0.4, 0.5, 0.6]).p_within(0.05) == 1
    assert math.isnan(paired_test([0.5], [0.5]).p_within(0.1))
