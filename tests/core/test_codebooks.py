"""Every format is what its source says, and its search finds the nearest level with its rule for
ties.
"""

import hashlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lora_jax.core import codebooks
from lora_jax.core.codebooks import FORMATS, Format, normal_float, register_format
from lora_jax.core.codes import nearest_code

CODEBOOKS = [name for name, format in FORMATS.items() if format.levels is not None]


def test_construction_gives_the_published_nf4_values():
    # The published numbers are float32 quantiles; their last digits differ from float64 ones.
    assert np.abs(np.asarray(normal_float(4)) - FORMATS["nf4"].table()).max() < 2e-7


@pytest.mark.parametrize(
    ("bits", "levels"),
    [(2, [-1, 0, 0.43582, 1]), (3, [-1, -0.53502, -0.24693, 0, 0.18334, 0.38199, 0.62299, 1])],
)
def test_construction_at_other_widths(bits, levels):
    np.testing.assert_allclose(normal_float(bits), levels, atol=5e-6)  # given to five digits


@pytest.mark.parametrize("bits", range(2, 9))
def test_normal_floats_have_every_code_zero_and_both_ends(bits):
    levels = normal_float(bits)
    assert (
        len(set(levels)) == 2**bits
        and min(levels) == -1
        and max(levels) == 1
        and levels[2 ** (bits - 1) - 1] == 0
    )


def test_dynamic_map_is_bitsandbytes():
    digest = hashlib.sha256(codebooks.dynamic_map().astype("<f4").tobytes()).hexdigest()
    assert digest == "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"


@pytest.mark.parametrize("name", CODEBOOKS)
def test_search_finds_the_nearest_level(name):
    format, x = FORMATS[name], np.random.default_rng(0).uniform(-1.2, 1.2, 4000).astype(np.float32)
    x[:1000] *= np.float32(2.0) ** -np.arange(1000).astype(np.float32).clip(0, 20)
    table = format.table().astype(np.float64)
    codes = np.asarray(nearest_code(jnp.asarray(x), format))
    distance = np.abs(x[:, None] - table)
    # Thresholds are rounded to float32 once: nearest up to one rounding of the number itself.
    assert (distance[np.arange(len(x)), codes] <= np.nanmin(distance, 1) + 1.2e-7 * np.abs(x)).all()
    assert not np.isnan(table[codes]).any()


@pytest.mark.parametrize("name", CODEBOOKS)
def test_levels_have_their_own_codes(name):
    format = FORMATS[name]
    used = np.flatnonzero(~np.isnan(format.table()))
    codes = np.asarray(nearest_code(jnp.asarray(format.table()[used]), format))
    # -0 equals +0, and a comparison cannot tell them apart: code 0 stands for both.
    np.testing.assert_array_equal(
        np.where(format.table()[used] == 0, 0, codes), np.where(format.table()[used] == 0, 0, used)
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp4_e2m1", ml_dtypes.float4_e2m1fn),
        ("fp8_e4m3", ml_dtypes.float8_e4m3fn),
        ("fp8_e5m2", ml_dtypes.float8_e5m2),
    ],
)
def test_small_floats_round_as_their_type_does_ties_included(name, dtype):
    format, bits = FORMATS[name], FORMATS[name].bits
    levels = format.table(1.0)
    levels = np.sort(levels[~np.isnan(levels)])
    x = np.concatenate(
        [
            levels,
            (levels[1:] + levels[:-1]) / 2,
            np.random.default_rng(1).uniform(-format.top, format.top, 2000),
        ]
    )
    x = x.astype(np.float32)
    codes = np.asarray(nearest_code(jnp.asarray(x), format, raw=True))
    ours = (
        np.arange(2**bits, dtype=np.uint8).view(dtype)[codes]
        if bits == 8
        else format.table(1.0)[codes]
    )
    np.testing.assert_array_equal(ours.astype(np.float32), x.astype(dtype).astype(np.float32))


def test_fp4_ties_go_towards_zero_and_small_numbers_keep_their_sign():
    x = np.asarray([0.0859375, -0.0859375, 1e-4, -1e-4, 0.0], np.float32)
    assert np.asarray(nearest_code(jnp.asarray(x), FORMATS["fp4"])).tolist() == [1, 9, 0, 8, 0]


def test_nf4_ties_go_to_the_lower_code():
    middle = codebooks.midpoints(FORMATS["nf4"].table())
    assert np.asarray(nearest_code(jnp.asarray(middle), FORMATS["nf4"])).tolist() == list(range(15))


def test_a_codebook_of_ones_own_takes_three_lines(monkeypatch):
    monkeypatch.setattr(codebooks, "FORMATS", dict(FORMATS))
    mine = codebooks.register_format(Format("thirds", 2, (-1.0, -1 / 3, 1 / 3, 1.0)))
    assert codebooks.format_named("thirds") is mine
    assert np.asarray(nearest_code(jnp.asarray([-0.9, -0.1, 0.1, 0.9]), mine)).tolist() == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("format", "words"),
    [
        (Format("nf4", 4, (-1.0, 0.0, 1.0)), "other levels"),
        (Format("wide", 9, (-1.0, 1.0)), "2 to 8 bits"),
        (Format("many", 2, (-1.0, -0.5, 0.0, 0.5, 1.0)), "2 to 4 finite levels"),
        (Format("infinite", 2, (-1.0, float("inf"))), "finite levels"),
        (Format("zeros", 2, (0.0, 0.0)), "not all 0"),
        (Format("both", 2, (-1.0, 1.0), offset=True), "only a grid"),
    ],
)
def test_wrong_codebooks_are_refused(format, words):
    with pytest.raises(ValueError, match=words):
        register_format(format)
    assert format.name == "nf4" or format.name not in FORMATS


def test_unknown_names_get_near_ones():
    with pytest.raises(ValueError, match="nearest: 'nf4'"):
        codebooks.format_named("nf44")
