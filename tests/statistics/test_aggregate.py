"""Aggregates over tasks: by hand, and as scipy has them."""

import numpy as np
import pytest
from scipy import stats

from lora_jax.statistics.aggregate import (
    improvement_interval,
    interquartile_mean,
    interquartile_mean_interval,
    performance_profile,
    probability_of_improvement,
)


def test_the_mean_of_the_middle_half_is_scipys_and_counts_parts_of_runs():
    tasks = np.random.default_rng(0).normal(size=(4, 5))
    assert interquartile_mean(tasks) == pytest.approx(stats.trim_mean(tasks, 0.25, axis=None))
    # Of 1, 2, 9 the middle half is from 0.75 to 2.25 of 3 runs: a quarter of 1, all of 2, a quarter
    # of 9.
    assert interquartile_mean([[9, 1], [2]]) == pytest.approx((0.25 + 2 + 2.25) / 1.5)
    assert interquartile_mean([[0.7]]) == pytest.approx(0.7)


def test_the_probability_of_improvement_is_mann_and_whitneys_on_the_mean_of_tasks():
    first, second = [[1, 3, 3], [5, 5]], [[2, 3], [5]]
    # Of 6 pairs of the first task, 2 are won and 2 are even; both of the second are even.
    assert probability_of_improvement(first, second) == pytest.approx((3 / 6 + 1 / 2) / 2)
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=7), draw.normal(size=9)
    u = stats.mannwhitneyu(x, y).statistic
    assert probability_of_improvement([x], [y]) == pytest.approx(u / 63)
    assert probability_of_improvement([y], [x]) == pytest.approx(1 - u / 63)


def test_a_profile_is_the_share_of_runs_above_a_level_each_task_alike():
    found = performance_profile([[0.2, 0.8], [0.4, 0.6, 0.8, 1.0]], [0.0, 0.5, 0.8, 1.0])
    assert found.tolist() == pytest.approx([1.0, (1 / 2 + 3 / 4) / 2, (0 + 1 / 4) / 2, 0.0])


def test_intervals_hold_their_value_and_shrink_with_runs():
    draw = np.random.default_rng(2)
    few, many = draw.normal(size=(3, 5)), draw.normal(size=(3, 80))
    width = lambda one: one.high - one.low
    for interval in (interquartile_mean_interval, lambda x: improvement_interval(x, x - 0.5)):
        for tasks in (few, many):
            found = interval(tasks)
            assert found.low <= found.value <= found.high
        assert width(interval(many)) < 0.5 * width(interval(few))
    assert improvement_interval(many, many - 3).low > 0.9


def test_settings_are_compared_over_the_same_tasks():
    with pytest.raises(ValueError, match="the same tasks"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="the same tasks"):
        probability_of_improvement([[1.0], []], [[1.0], [2.0]])
