"""The best rate of known curves is found, its interval covers it as often as it says, and where
nothing can be told it says so.
"""

import math

import numpy as np
import pytest

from lora_jax.analysis.rates import BestRate, best_rate, rate_ratio, slope_on_log
from lora_jax.statistics.interval import Interval

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


def test_a_curve_that_bends_more_on_one_side_has_its_minimum_where_it_is():
    x = np.log(2.0) * np.arange(8)
    for true in np.log(2.0) * np.array([2.7, 3.2, 4.0]):
        # A parabola through the three best misses by up to 0.15, one through all by 0.9.
        losses = 0.05 * (x - true) ** 2 * np.where(x > true, 5, 1)
        found = best_rate(np.exp(x), np.stack([losses, losses + 1]))
        assert abs(math.log(found.rate.value) - true) < 0.1


def test_the_interval_over_seeds_holds_the_best_and_narrows_with_less_noise():
    dice = np.random.default_rng(0)
    wide, narrow = (
        best_rate(RATES, bowl(2e-3) + dice.normal(0, noise, (8, 5))).rate for noise in (0.05, 0.005)
    )
    assert narrow.low < 2e-3 * 1.05 and narrow.high > 2e-3 / 1.05
    assert narrow.high / narrow.low < wide.high / wide.low


SHAPES = {
    "symmetric": lambda x: 0.05 * x**2,
    "three times as steep": lambda x: 0.05 * x**2 * np.where(x > 0, 3, 1),
    "explodes": lambda x: 0.1 * (np.exp(x) - 1 - x),
    "saturates and explodes": lambda x: (
        0.15 * (np.exp(-x / 2) + x / 2 - 1) + 0.02 * (np.exp(1.5 * x) - 1 - 1.5 * x)
    ),
    "falls off a cliff": lambda x: (
        0.15 * (np.exp(-x / 2) + x / 2 - 1) + 0.003 * (np.exp(3 * x) - 1 - 3 * x)
    ),
}


def simulated(shape, dice, seeds: int, rates: int, noise: float):
    """Losses of a grid of factor 2 with the true log rate: a seed shifts and tilts its curve, and
    what is high is noisy.
    """
    true = dice.uniform(-0.35, 0.35) + math.log(2) * dice.integers(-1, 2) * (rates > 6)
    x = math.log(2) * (np.arange(rates) - rates // 2)
    curve = SHAPES[shape](x - true)
    of_seed = dice.normal(0, 3 * noise, (seeds, 1)) + dice.normal(0, noise, (seeds, 1)) * (x - true)
    return (
        np.exp(x),
        curve + of_seed + dice.normal(0, noise * (1 + 15 * curve), (seeds, rates)),
        true,
    )


@pytest.mark.parametrize("noise", [0.01, 0.002])
def test_an_interval_of_90_percent_covers_the_best_as_often_and_is_not_wide(noise):
    dice, covered = np.random.default_rng(0), {shape: [] for shape in SHAPES}
    factors = []
    for shape, found in covered.items():
        for seeds, count in [(3, 5), (3, 8), (4, 6), (5, 7)] * 40:
            rates, losses, true = simulated(shape, dice, seeds, count, noise)
            low, high = best_rate(rates, losses, level=0.9).rate[1:]
            found.append(low <= math.exp(true) <= high)
            factors.append(min(high, rates[-1]) / max(low, rates[0]))
    shares = {shape: np.mean(found) for shape, found in covered.items()}
    # Little noise leaves what a grid cannot tell, which is allowed for in full.
    assert 0.85 <= np.mean(list(shares.values())) <= (0.97 if noise == 0.01 else 1), shares
    # Of one shape 160 curves: two standard errors of 0.9 are 0.05.
    assert all(share > 0.85 for share in shares.values()), shares
    assert np.median(factors) < (2.2 if noise == 0.01 else 1.4)


def test_where_no_rate_is_better_the_interval_is_open():
    dice = np.random.default_rng(1)
    rates = 1e-4 * 2.0 ** np.arange(7)
    closed = [best_rate(rates, dice.normal(0, 0.01, (5, 7)), level=0.9).rate for _ in range(100)]
    # A slope of 0 nowhere at two ends of seven would be luck twice.
    assert np.mean([low > 0 and high < math.inf for _, low, high in closed]) < 0.15
    same = best_rate(rates, np.ones((3, 7))).rate
    assert (same.low, same.high) == (0.0, math.inf)


def test_a_best_at_the_end_of_the_grid_is_told_and_what_diverged_is_never_best():
    edge = best_rate(RATES, np.stack([bowl(1e-5), bowl(1e-5) + 0.01]))
    assert edge.on_edge and edge.rate.low == 0.0
    losses = bowl(2e-3)
    losses[4] = np.nan
    # The curve through the four that are left; what diverged bounds it.
    found = best_rate(RATES, losses).rate
    assert found.value == pytest.approx(2e-3) and found.high == pytest.approx(1e-2)
    # In one seed of two 3e-3 diverged: it is never best, and the best is below.
    losses = np.stack([bowl(2e-3), bowl(2e-3)])
    losses[0, 3:] = np.inf
    assert best_rate(RATES, losses).rate.high <= 3e-3 * (1 + 1e-9)
    with pytest.raises(ValueError, match="lower the whole grid"):
        best_rate(RATES, [np.inf] * 5)
    with pytest.raises(ValueError, match="3 or more rising rates"):
        best_rate([1e-3, 1e-4, 1e-2], [1, 2, 3])
    with pytest.raises(ValueError, match="level must be above 0"):
        best_rate(RATES, bowl(2e-3), level=95)


def test_the_ratio_of_two_bests_is_narrower_than_the_ends_of_both():
    first, second = best_rate(RATES, bowl(2e-3)), best_rate(RATES, bowl(4e-4))
    ratio = rate_ratio(first, second)
    assert ratio.value == pytest.approx(5.0, rel=1e-6) and ratio.low < 5 < ratio.high
    assert ratio.high < first.rate.high / second.rate.low
    assert ratio.low > first.rate.low / second.rate.high
    even = [BestRate(Interval(r, r / 2, r * 2), 0.0, False, 0.9) for r in (8.0, 1.0)]
    assert np.log(rate_ratio(*even)) == pytest.approx(
        [
            math.log(8),
            math.log(8) - math.sqrt(2) * math.log(2),
            math.log(8) + math.sqrt(2) * math.log(2),
        ]
    )
    with pytest.raises(ValueError, match="one level"):
        rate_ratio(first, best_rate(RATES, bowl(4e-4), level=0.9))


def test_the_slope_on_log_is_that_of_the_line_and_its_interval_that_of_the_fits():
    fits = lambda values: [BestRate(Interval(v, v / 2, v * 2), 0.0, False, 0.95) for v in values]
    xs = np.array([1.0, 4, 16, 64])
    found = slope_on_log(xs, fits(3e-3 * xs**-0.5))
    # Equal errors: the deviation of a least-squares slope, and no scatter beside the line.
    half = math.log(2) / math.sqrt(((np.log(xs) - np.log(xs).mean()) ** 2).sum())
    assert found == pytest.approx((-0.5, -0.5 - half, -0.5 + half, 0.0), abs=1e-9)
    far = slope_on_log(xs, fits(3e-3 * xs**-0.5 * np.array([1, 8, 1 / 8, 1])))
    assert far.scatter > 1 and far.high - far.low == pytest.approx(2 * half * far.scatter)
    with pytest.raises(ValueError, match="3 or more fits"):
        slope_on_log([1, 4], fits([1e-3, 1e-3]))
    with pytest.raises(ValueError, match="positive x of its own"):
        slope_on_log([1, 4, 4], fits([1e-3] * 3))


def test_a_slope_of_nothing_is_covered_and_an_open_fit_opens_it():
    dice, rates = np.random.default_rng(2), 2.0 ** np.arange(-4, 5)
    covered = []
    for _ in range(60):
        fits = []
        for _ in range(4):
            losses = SHAPES["explodes"](np.log(rates)) + dice.normal(0, 0.01, (4, 9))
            fits.append(best_rate(rates, losses, level=0.9))
        covered.append((slope := slope_on_log([1, 4, 16, 64], fits)).low <= 0 <= slope.high)
    assert np.mean(covered) > 0.85
    fits[0] = best_rate(rates, np.ones((3, 9)), level=0.9)
    assert slope_on_log([1, 4, 16, 64], fits).high == math.inf
