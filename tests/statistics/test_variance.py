"""The analysis of variance equals scipy's, tables worked by hand, and direct least squares."""

import itertools

import numpy as np
import pytest
from scipy import stats

from lora_jax.statistics.paired import holm, paired_test
from lora_jax.statistics.variance import REST, decompose


def test_one_factor_is_scipys_anova():
    groups = {"a": [1.0, 2.0, 4.0], "b": [3.0, 5.0], "c": [8.0, 7.0, 9.0, 9.5]}
    levels = [name for name, values in groups.items() for _ in values]
    found = decompose(
        {"factor": levels}, [value for values in groups.values() for value in values]
    )["factor"]
    reference = stats.f_oneway(*groups.values())
    assert (found.f, found.p) == pytest.approx((reference.statistic, reference.pvalue), rel=1e-10)


def test_a_two_by_two_table_by_hand():
    # Cells (1, 3), (5, 7), (2, 4), (10, 12): each 2 values. Grand mean 5.5; a: 4, 7; b: 2.5, 8.5;
    # cells 2, 6, 3, 11. SS a = 4 (1.5^2 + 1.5^2) = 18; b = 4 (9 + 9) = 72; a x b: cell - a - b +
    # grand = +-1: 8 * 1 = 8; rest = 8 * 1 = 8.
    factors = {"a": [0] * 4 + [1] * 4, "b": [0, 0, 1, 1] * 2}
    found = decompose(factors, [1, 3, 5, 7, 2, 4, 10, 12])
    squares = {source.name: source.sum_of_squares for source in found.sources}
    assert squares == pytest.approx({"a": 18, "b": 72, "a × b": 8, REST: 8})
    assert [source.freedom for source in found.sources] == [1, 1, 1, 4]
    assert found.total == pytest.approx(106) and found.overlap == pytest.approx(0, abs=1e-12)
    assert found["a"].f == pytest.approx(9) and found["a"].corrected == pytest.approx(
        (18 - 2) / (106 + 2)
    )
    assert found.replicated


def test_in_a_whole_grid_the_shares_add_up_and_seeds_are_a_block():
    random = np.random.default_rng(0)
    grid = list(itertools.product((1, 4, 16), ("nf4", "int8"), ("q", "all"), (0, 1, 2)))
    values = [
        rank / 100 + (format == "nf4") / 50 + seed / 200 + random.normal(0, 0.001)
        for rank, format, _, seed in grid
    ]
    names = ("rank", "format", "targets", "seed")
    found = decompose(
        {name: [row[i] for row in grid] for i, name in enumerate(names)}, values, blocks=("seed",)
    )
    assert (
        sum(source.share for source in found.sources) == pytest.approx(1)
        and abs(found.overlap) < 1e-12
    )
    assert [source.name for source in found.sources] == [
        "rank", "format", "targets", "seed", "rank × format", "rank × targets", "format × targets", REST,
    ]  # fmt: skip
    assert found["rank"].share > 0.5 and found["rank"].p < 1e-6 and found["targets"].share < 0.01
    assert found["seed"].p < 1e-6


def test_holes_in_the_grid_give_the_sums_of_direct_least_squares():
    random = np.random.default_rng(1)
    grid = [
        row
        for row in itertools.product(range(3), range(4), range(2))
        if row not in ((0, 0, 0), (1, 2, 1), (2, 3, 0))
    ]
    values = random.normal(size=len(grid))
    factors = {
        "a": [row[0] for row in grid],
        "b": [row[1] for row in grid],
        "c": [row[2] for row in grid],
    }

    def residual(*terms: str) -> float:
        columns = [np.ones(len(grid))]
        for term in terms:
            labels = [tuple(factors[name][i] for name in term) for i in range(len(grid))]
            columns += [
                np.array([label == level for label in labels], float)
                for level in sorted(set(labels))
            ]
        design = np.stack(columns, 1)
        return float(
            np.sum((values - design @ np.linalg.lstsq(design, values, rcond=None)[0]) ** 2)
        )

    found = decompose(factors, values)
    assert found["a"].sum_of_squares == pytest.approx(
        residual("b", "c") - residual("a", "b", "c"), rel=1e-8
    )
    assert found["b"].sum_of_squares == pytest.approx(
        residual("a", "c") - residual("a", "b", "c"), rel=1e-8
    )
    pairs = ("ab", "ac", "bc")
    assert found["a × b"].sum_of_squares == pytest.approx(
        residual("ac", "bc") - residual(*pairs), rel=1e-8
    )
    assert found[REST].sum_of_squares == pytest.approx(residual(*pairs), rel=1e-8)
    assert found.overlap != 0 and not found.replicated


def test_factors_that_change_together_cannot_be_told_apart_and_say_so():
    found = decompose(
        {"rank": [8, 8, 4, 4], "targets": ["q", "q", "q+v", "q+v"]}, [1.0, 1.1, 2.0, 2.1]
    )
    assert found["rank"].freedom == found["targets"].freedom == 0
    assert found["rank"].share == 0 and found.overlap == pytest.approx(1 - found[REST].share)


def test_without_repeats_nothing_is_left_to_judge_by():
    found = decompose({"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]}, [1.0, 2.0, 3.0, 5.0])
    assert found[REST].freedom == 0 and not found.replicated
    # Mean 2.75, a: 1.5 and 4: SS a = 2 (1.25^2 + 1.25^2) = 6.25 of a total of 8.75.
    assert np.isnan(found["a"].p) and found["a"].share == pytest.approx(6.25 / 8.75)


def test_chance_alone_has_a_corrected_share_near_nothing():
    random = np.random.default_rng(2)
    shares = []
    for _ in range(200):
        found = decompose({"a": [i // 10 for i in range(100)]}, random.normal(size=100))
        shares.append((found["a"].share, found["a"].corrected))
    raw, corrected = np.mean(shares, axis=0)
    assert (
        raw == pytest.approx(9 / 99, abs=0.01) and corrected < 0.03
    )  # clipped at 0, so a little above it


def test_what_cannot_be_decomposed_is_an_error():
    with pytest.raises(ValueError, match="No factor differs"):
        decompose({"a": [1, 1]}, [0.1, 0.2])
    with pytest.raises(ValueError, match="two or more runs"):
        decompose({"a": [1]}, [0.1])


def test_equal_scores_have_nothing_to_explain():
    found = decompose({"a": [0, 0, 1, 1]}, [0.5] * 4)
    assert found.total == 0 and found["a"].share == 0 and found.overlap == 0


def test_a_search_of_many_settings_costs_a_column_each_and_finds_the_one_that_matters():
    """Four settings drawn anew for each of 100 trials: a column a level was 26 GiB."""
    random = np.random.default_rng(5)
    factors = {name: list(10 ** random.uniform(-4, -2, 100)) for name in "abcd"}
    values = np.log10(factors["a"]) + 0.1 * random.standard_normal(100)
    found = decompose({name: factors[name] for name in "abcd"}, list(values))
    assert found.trends == tuple("abcd") and found.levels["a"] == 100 and found.left_out == ()
    # Its own share, without what chance lets the other columns say of it.
    assert found["a"].share > 0.8 and found["a"].p < 1e-6 and found["b"].share < 0.02
    assert found["a"].freedom == found["a × b"].freedom == 1


def test_a_trend_is_the_line_of_least_squares_in_the_logarithm():
    random = np.random.default_rng(6)
    rates = list(10 ** random.uniform(-4, -2, 30))
    values = np.log(rates) + random.standard_normal(30)
    found = decompose({"rate": rates}, list(values))["rate"]
    reference = stats.linregress(np.log(rates), values)
    assert (found.share, found.p) == pytest.approx(
        (reference.rvalue**2, reference.pvalue), rel=1e-8
    )


def test_seeds_are_never_a_trend_and_words_with_many_levels_have_no_interaction():
    many = [f"w{n}" for n in range(30)] * 2
    other = [f"v{n % 29}" for n in range(60)]
    random = np.random.default_rng(7)
    factors = {"a": many, "b": other, "seed": [n // 2 for n in range(60)]}
    found = decompose(factors, list(random.standard_normal(60)), blocks=("seed",))
    assert found.trends == () and found.left_out == ("a × b",)
    assert found.levels["seed"] == 30


def crossed_with_seeds(draw, *, of_rank=0.0, seeds=4):
    """Scores of a grid under the same seeds; each seed does something of its own to each rank."""
    grid = list(itertools.product((1, 4, 16), ("nf4", "int8"), range(seeds)))
    luck, own = draw.normal(size=seeds), draw.normal(0, of_rank, (3, seeds))
    factors = {name: [row[n] for row in grid] for n, name in enumerate(("rank", "format", "seed"))}
    place = {1: 0, 4: 1, 16: 2}
    noise = draw.normal(0, 0.3, len(grid))
    return factors, [
        luck[seed] + own[place[rank], seed] + noise[n] for n, (rank, _, seed) in enumerate(grid)
    ]


def test_a_source_is_tested_against_what_seeds_do_to_it():
    """Two levels under the same seeds are Student's paired test of their means in each seed."""
    factors, values = crossed_with_seeds(np.random.default_rng(8), of_rank=0.5)
    table = decompose(factors, values, blocks=("seed",))
    mean = lambda format, seed: np.mean(
        [
            value
            for value, *at in zip(values, factors["format"], factors["seed"], strict=True)
            if at == [format, seed]
        ]
    )
    sides = [[mean(format, seed) for seed in range(4)] for format in ("nf4", "int8")]
    assert table["format"].p == pytest.approx(paired_test(*sides).p, rel=1e-9)
    assert table["format"].against == "format × seed" and table["format"].error_freedom == 3
    assert table["rank"].against == "rank × seed" and table["rank"].error_freedom == 6
    assert table["rank × format"].against == "rank × format × seed"
    assert table["seed"].against == REST

    own = [table[name] for name in ("rank", "format", "rank × format")]
    assert [one.adjusted for one in own] == pytest.approx(holm([one.p for one in own]))
    assert np.isnan(table["seed"].adjusted)


def test_what_seeds_do_to_an_axis_is_not_taken_for_the_axis():
    draw = np.random.default_rng(9)
    tables = [
        decompose(*crossed_with_seeds(draw, of_rank=0.5), blocks=("seed",)) for _ in range(200)
    ]
    # 5% of 200 are 10, and three binomial deviations more are 19. Against the rest it were 36.
    assert sum(table["rank"].p < 0.05 for table in tables) <= 19
    pooled = [
        stats.f.sf(
            table["rank"].sum_of_squares / 2 / (table[REST].sum_of_squares / table[REST].freedom),
            2,
            table[REST].freedom,
        )
        for table in tables
    ]
    assert np.mean(np.array(pooled) < 0.05) > 0.15


def test_seeds_that_settings_do_not_share_leave_the_rest_to_test_against():
    draw = np.random.default_rng(10)
    factors = {"rank": [1] * 4 + [4] * 4, "seed": list(range(8))}
    (rank,) = [
        one
        for one in decompose(factors, draw.normal(size=8), blocks=("seed",)).sources
        if one.name == "rank"
    ]
    assert rank.against in (REST, "")


def test_a_numeric_factor_is_one_column_where_it_is_asked_for():
    draw = np.random.default_rng(11)
    factors, values = crossed_with_seeds(draw)
    values = [value + 0.5 * np.log2(rank) for value, rank in zip(values, factors["rank"])]
    line = decompose(factors, values, blocks=("seed",), trends=("rank",))
    assert line.trends == ("rank",) and line["rank"].freedom == 1
    assert line["rank"].error_freedom == 3  # the slope of each of four seeds
    slopes = [
        stats.linregress(
            [np.log2(r) for r, s in zip(factors["rank"], factors["seed"]) if s == seed],
            [v for v, s in zip(values, factors["seed"]) if s == seed],
        ).slope
        for seed in range(4)
    ]
    assert line["rank"].p == pytest.approx(paired_test(slopes, [0.0] * 4).p, rel=1e-9)
    with pytest.raises(ValueError, match="levels of format are none"):
        decompose(factors, values, blocks=("seed",), trends=("format",))
