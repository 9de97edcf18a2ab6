"""Envelopes and forgetting curves are read off known curves."""

import pytest

from lora_jax.analysis.curves import Kept, envelope, forgetting_at, pareto


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
