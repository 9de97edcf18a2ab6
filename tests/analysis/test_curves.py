"""A parabola's vertex is found, its interval covers it, edges are told, and envelopes and
forgetting curves read off known curves.
"""

import numpy as np
import pytest

from lora_jax.analysis.curves import Kept, best_rate, envelope, forgetting_at, pareto, rate_ratio

RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]


def bowl(best: float, rates=RATES) -> np.ndarray:
    return 1.0 + 0.1 * np.log(np.asarray(rates) / best) ** 2


def test_the_vertex_of_a_parabola_in_log_rate_is_found():
    found = best_rate(RATES, bowl(2e-3))
    assert (
        found.rate.value == pytest.approx(2e-3, rel=1e-6)
        and found.loss == pytest.approx(1.0)
        and not found.on_edge
    )
    # One seed: the neighbours of the grid's best, which is 3e-3.
    assert (found.rate.low, found.rate.high) == (pytest.approx(1e-3), pytest.approx(1e-2))


def test_the_interval_over_seeds_holds_the_best_and_narrows_with_less_noise():
    dice = np.random.default_rng(0)
    wide, narrow = (
        best_rate(RATES, bowl(2e-3) + dice.normal(0, noise, (8, 5))).rate for noise in (0.05, 0.005)
    )
    assert narrow.low < 2e-3 * 1.05 and narrow.high > 2e-3 / 1.05
    assert narrow.high / narrow.low < wide.high / wide.low


def test_a_best_at_the_end_of_the_grid_is_told_and_what_diverged_is_never_best():
    assert best_rate(RATES, bowl(1e-5)).on_edge
    losses = bowl(2e-3)
    losses[4] = np.nan
    assert best_rate(RATES, losses).rate.value == pytest.approx(
        3e-3
    )  # no parabola without a right neighbour
    with pytest.raises(ValueError, match="lower the whole grid"):
        best_rate(RATES, [np.inf] * 5)
    with pytest.raises(ValueError, match="3 or more rising rates"):
        best_rate([1e-3, 1e-4, 1e-2], [1, 2, 3])


def test_the_ratio_of_two_bests_has_the_interval_of_both_ends():
    ratio = rate_ratio(best_rate(RATES, bowl(2e-3)), best_rate(RATES, bowl(4e-4)))
    assert ratio.value == pytest.approx(5.0, rel=1e-6) and ratio.low < 5 < ratio.high


def test_forgetting_is_compared_at_equal_learning():
    curve = [Kept("full", 0, 3.0, 0.0), Kept("full", 10, 2.0, 0.4), Kept("full", 20, 1.5, 1.0)]
    assert forgetting_at(curve, 2.5) == pytest.approx(0.2) and forgetting_at(
        curve, 1.5
    ) == pytest.approx(1.0)
    assert forgetting_at(curve, 1.0) is None
    worse = Kept("worse", 10, 2.2, 0.5)
    alike = Kept("alike", 15, 2.0, 0.5)  # as much learnt as at step 10, and more forgotten
    assert [point.step for point in pareto([*curve, worse, alike])] == [0, 10, 20]


def test_the_envelope_names_the_best_curve_of_each_budget():
    curves = {4: [(10, 3.0), (100, 2.0)], 8: [(20, 3.0), (200, 2.0)], 3: [(5, 5.0), (10, 4.5)]}
    assert envelope(curves, [2, 7, 30, 150]) == [None, 3, 4, 8]
