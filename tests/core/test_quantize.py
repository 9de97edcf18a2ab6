"""Quantised weights: bytes, layouts, scale types, double quantisation and what is refused."""

import hashlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lora_jax.core import bit_packing, scales
from lora_jax.core.codebooks import FORMATS
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import (
    QuantSpec,
    bytes_by_path,
    bytes_of,
    quantize,
    scale_damage,
)
from lora_jax.core.quantize_columns import quantize_by_columns


def sha(array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def wave() -> np.ndarray:
    i = np.arange(8192, dtype=np.float64)
    w = (np.sin(0.37 * i) * np.cos(0.011 * i) * 0.05).astype(np.float32).reshape(64, 128)
    assert sha(w) == "fb45e6493268eb835d29f252e786eb1ed3357743a499d669f051660fc7721d7a"
    return w


def test_nf4_with_double_quantisation_has_bitsandbytes_bytes(wave):
    plain, double = (
        quantize(jnp.asarray(wave.T), QuantSpec(double=False)),
        quantize(jnp.asarray(wave.T), QuantSpec()),
    )
    theirs = bit_packing.pack(bit_packing.unpack(plain.codes, 4, 128).T.reshape(-1, 1), 4)
    assert sha(theirs) == "85c2668fae8e873cd6530679d9a59c92e0214175d815bad60f54323943611816"
    assert (
        sha(np.asarray(plain.scale).T)
        == "a93b43496bbc2c1eb0bd1ac3258c56d63f96aee93d93d1112de9994bf8980df6"
    )
    assert (
        sha(double.scale.codes)
        == "e5dfdc7cb3088e9d88c5f0beee5230702b8466b0c7d642021c493a71ca944633"
    )
    assert float(double.scale.offset) == 0.039872560650110245 and double.scale.absmax.tolist() == [
        0.02508791908621788
    ]
    errors = [
        float(np.linalg.norm(q.matrix() - wave.T) / np.linalg.norm(wave)) for q in (plain, double)
    ]
    assert [round(error, 5) for error in errors] == [0.09219, 0.09223]


def test_int8_rows_have_bitsandbytes_bytes(wave):
    q = quantize(jnp.asarray(wave.T.astype(np.float16)), QuantSpec("int8", None, double=False))
    integers = (np.asarray(q.codes).astype(np.int16) - 128).astype(np.int8)
    assert sha(integers.T) == "690ecfe80e40ff266cec8c592821274ee267e8acfdd63ecdb8ee8ca86fa499be"
    assert q.scale[0, :2].tolist() == [0.04974365234375, 0.045562744140625]


@pytest.mark.parametrize("name", FORMATS)
def test_stored_bits_are_those_promised_and_the_error_is_bounded(name):
    format = FORMATS[name]
    w = normal((256, 64))
    q = quantize(jnp.asarray(w), QuantSpec(name, 64, double=False))
    per_block = 64 if format.offset else 32
    assert 8 * bytes_of(q) == w.size * (format.bits + per_block / 64)
    levels = np.sort(format.table()[~np.isnan(format.table())])
    blocks = w.reshape(4, 64, 64)
    spread = np.ptp(blocks, axis=1) if format.offset else np.abs(blocks).max(1)
    used = levels if format.levels is not None or format.offset else levels[1:]
    # Half the widest gap between levels, or what lies beyond the outermost level; and a rounding.
    widest = max(np.diff(used).max() / 2, 1 - used[-1], 0 if format.offset else 1 + used[0])
    off = np.abs(np.asarray(q.matrix()) - w).reshape(blocks.shape).max(1)
    assert (off <= spread * widest * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("block", "bits"), [(32, 4.254), (64, 4.127), (128, 4.0635), (256, 4.0317)]
)
def test_double_quantised_bits_are_those_of_the_paper(block, bits):
    q = quantize(jnp.asarray(normal((1024, 256))), QuantSpec("nf4", block))
    assert 8 * (bytes_of(q) - 4) / q.size == pytest.approx(
        bits, abs=1e-3
    )  # 4 bytes a matrix for the offset


def test_real_model_takes_4_127_bits_a_weight(minilm_folder):
    from lora_jax.io.weights import load_encoder

    flat = flatten(load_encoder(minilm_folder)[1])
    kernels = {
        path: w
        for path, w in flat.items()
        if path.startswith("layers/") and path.endswith("/kernel")
    }
    boxes = {path: quantize(jnp.asarray(w), QuantSpec()) for path, w in kernels.items()}
    assert len(boxes) == 6 and sum(w.size for w in kernels.values()) == 10_616_832
    # 4 + 8/64 + 32/(64 * 256) = 4.12695, and 4 bytes a matrix.
    assert 8 * bytes_of(boxes) / sum(w.size for w in kernels.values()) == pytest.approx(
        4.127, abs=5e-4
    )
    assert bytes_by_path(boxes)["layers/mlp/up/kernel"] == bytes_of(boxes["layers/mlp/up/kernel"])
    assert 7.7 < bytes_of(kernels) / bytes_of(boxes) < 7.8


def test_a_stack_is_quantised_matrix_by_matrix():
    w = jnp.asarray(normal((2, 3, 128, 16)))
    for spec in (
        QuantSpec(),
        QuantSpec("int4_asym", second_level="log"),
        QuantSpec("nf3", 32, False, "bfloat16"),
    ):
        whole = quantize(w, spec)
        one = quantize(w[1, 2], spec)
        np.testing.assert_array_equal(whole.matrix()[1, 2], one.matrix())
        assert whole.shape == w.shape and whole.ndim == 4 and whole.size == w.size
        for mine, theirs in zip(
            [np.asarray(part)[1, 2] for part in jax.tree.leaves(whole)],
            jax.tree.leaves(one),
            strict=True,
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_blocks_run_along_the_input_axes():
    w = jnp.asarray(normal((4, 8, 32)))  # out, then two input axes
    q = quantize(w, QuantSpec("int8", 64, double=False), kernel_ndim=3, in_axes=(1, 2))
    assert q.codes.shape == (256, 4) and q.scale.shape == (4, 4) and q.rows == 256
    assert float(jnp.abs(q.unbox() - w).max()) <= float(jnp.abs(w).max()) / 254 * 1.001
    np.testing.assert_array_equal(q.scale.T, jnp.abs(w).reshape(4, 4, 64).max(-1))


@pytest.mark.parametrize("name", ["nf4", "nf3", "int5", "int4_asym", "fp8_e4m3"])
def test_a_short_last_block_is_read_back(name):
    w = normal((100, 6)) + np.float32([0, 0, 0, 9, 9, -9])  # 0 would be a block's smallest weight
    q = quantize(jnp.asarray(w), QuantSpec(name, 64, double=False))
    np.testing.assert_array_equal(
        q.matrix()[:64], quantize(jnp.asarray(w[:64]), QuantSpec(name, 64, double=False)).matrix()
    )
    np.testing.assert_array_equal(
        q.matrix()[64:], quantize(jnp.asarray(w[64:]), QuantSpec(name, None, double=False)).matrix()
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["int8", "int4", "nf4"])
def test_reading_rounds_once_to_the_compute_dtype(name, dtype):
    q = quantize(jnp.asarray(normal((64, 8))).astype(dtype), QuantSpec(name, double=False))
    assert q.unbox().dtype == dtype
    np.testing.assert_array_equal(q.matrix(dtype), q.matrix(jnp.float32).astype(dtype))


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8", "fp4_e2m1"])
def test_quantising_again_changes_nothing(name):
    q = quantize(jnp.asarray(normal((128, 16))), QuantSpec(name, double=False))
    again = quantize(q.matrix(), q.spec)
    np.testing.assert_allclose(
        again.matrix(), q.matrix(), rtol=2.4e-7
    )  # 127 * (scale / 127) may round


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_of_zeros_stay_zero(name):
    q = quantize(jnp.zeros((64, 4)), QuantSpec(name, 32, double=False))
    assert not np.asarray(q.matrix()).any()
    assert name != "nf4" or not np.asarray(q.codes).any()  # the code that CUDA gives


def test_offsets_keep_the_smallest_and_the_largest_weight():
    w = normal((64, 32)) + 5
    q = quantize(jnp.asarray(w), QuantSpec("int4_asym", double=False))
    np.testing.assert_array_equal(q.matrix().min(0), w.min(0))
    np.testing.assert_allclose(q.matrix().max(0), w.max(0), rtol=3e-7)  # two roundings
    assert float(jnp.abs(q.matrix() - w).max()) <= np.ptp(w, axis=0).max() / 30 * 1.0001


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp4_e2m1", ml_dtypes.float4_e2m1fn), ("fp8_e4m3", ml_dtypes.float8_e4m3fn)],
)
def test_power_of_two_scales_give_the_microscaling_formats(name, dtype):
    w = normal((32, 50)) * np.float32(2.0) ** np.arange(-25, 25, dtype=np.float32)
    q = quantize(jnp.asarray(w), QuantSpec(name, 32, double=False, scale_dtype="e8m0"))
    largest = np.floor(np.log2(FORMATS[name].top))
    shared = np.exp2(np.floor(np.log2(np.abs(w).max(0))) - largest).astype(np.float32)
    expected = (
        np.clip(w / shared, -FORMATS[name].top, FORMATS[name].top).astype(dtype).astype(np.float32)
        * shared
    )
    np.testing.assert_array_equal(q.matrix(), expected)
    assert 8 * bytes_of(q) / q.size == FORMATS[name].bits + 8 / 32


def test_bfloat16_scales_are_those_that_codes_were_chosen_for():
    w = normal((64, 32))
    q = quantize(jnp.asarray(w), QuantSpec("int8", 64, False, "bfloat16"))
    step = np.asarray(q.scale.astype(jnp.float32)) / 127
    inside = np.abs(w) <= step * 127.5
    assert (
        q.scale.dtype == jnp.bfloat16
        and (
            np.abs(q.matrix() - w)[inside] <= (np.broadcast_to(step, w.shape)[inside] / 2) * 1.0001
        ).all()
    )


def heavy(times: float) -> np.ndarray:
    w = normal((64, 256)) * 0.02
    w[:, 7] *= times
    return w


def test_one_large_block_damages_the_scales_and_that_is_said():
    w = jnp.asarray(heavy(1000))
    with pytest.warns(UserWarning, match="second_level='log'"):
        q = quantize(w, QuantSpec())
    assert float(scale_damage(w, q)) > 0.5
    assert (
        float(scale_damage(jnp.asarray(heavy(1)), quantize(jnp.asarray(heavy(1)), QuantSpec())))
        == 0
    )


def test_a_block_far_from_zero_damages_the_zeros_of_the_others():
    w = normal((64, 256))
    w[:, 7] += 1000
    with pytest.warns(UserWarning, match="double=False"):
        q = quantize(jnp.asarray(w), QuantSpec("int4_asym"))
    assert float(scale_damage(jnp.asarray(w), q)) > 0.1
    assert (
        float(
            scale_damage(
                jnp.asarray(w), quantize(jnp.asarray(w), QuantSpec("int4_asym", double=False))
            )
        )
        == 0
    )


def test_mean_scheme_turns_signs_where_the_log_scheme_is_within_its_bound():
    w = jnp.asarray(heavy(10000))
    with pytest.warns(UserWarning):
        mean = quantize(w, QuantSpec())
    assert int((np.asarray(mean.scale.restore()) < 0).sum()) == 255
    log = quantize(w, QuantSpec(second_level="log"))
    exact = np.abs(np.asarray(w)).max(0)
    bound = 2 ** (float(log.scale.absmax[0]) / 2) - 1
    assert bound < 0.025
    assert np.abs(np.asarray(log.scale.restore()) / exact - 1).max() <= bound + 1e-5  # float32 exp2
    assert float(scale_damage(w, log)) == 0
    small = np.delete(np.asarray(w), 7, 1)
    errors = [
        np.linalg.norm(np.delete(np.asarray(q.matrix()), 7, 1) - small) / np.linalg.norm(small)
        for q in (mean, log)
    ]
    assert errors[0] > 1 > 0.1 > errors[1]


def test_a_short_last_group_of_the_log_scheme_has_the_range_of_its_own_scales():
    """Filled with zeros, it would reach from 2**-10 to 1."""
    numbers = jnp.concatenate([jnp.ones(256), 2.0**-10 * jnp.asarray([1.0, 1.25, 2.0])])
    made = scales.quantize_logs(numbers)
    np.testing.assert_allclose(made.absmax * 254, [0.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(made.restore(), numbers, rtol=2 ** (1 / 508) - 1 + 1e-6)


def test_log_scheme_costs_two_thousandths_of_a_bit_and_keeps_zeros():
    w = normal((64, 512))
    w[:, ::3] = 0
    q = quantize(jnp.asarray(w), QuantSpec(second_level="log"))
    assert not np.asarray(q.matrix())[:, ::3].any()
    assert 8 * bytes_of(q) / q.size == 4 + 8 / 64 + 64 / (64 * 256)


@pytest.mark.parametrize("n", [1, 5, 8, 31, 33, 256, 4099])
def test_mean_is_added_in_lanes_and_is_the_mean(n):
    x = np.abs(normal((2, n)))
    # At most n roundings of half a unit in the last place each; in lanes far fewer.
    np.testing.assert_allclose(
        scales.mean(jnp.asarray(x)), x.astype(np.float64).mean(-1), rtol=4e-7
    )


@pytest.mark.parametrize("n", [5, 48, 96, 4099])
def test_the_mean_of_each_row_of_a_stack_is_that_of_the_row_alone(n):
    x = np.abs(normal((40, n)))
    alone = [scales.mean(jnp.asarray(row)) for row in x]
    assert np.array_equal(scales.mean(jnp.asarray(x)), np.stack(alone))


def test_quantising_needs_less_than_two_leaves_of_extra_memory():
    from lora_jax.core.quantize import _quantize_matrix

    w = jax.ShapeDtypeStruct((4, 512, 512), jnp.float32)
    for spec in (QuantSpec(), QuantSpec("int4_asym"), QuantSpec("int8", None, False)):
        memory = _quantize_matrix.lower(w, spec, 2, (0,)).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 2 * 4 * 512 * 512 * 4


@pytest.mark.parametrize(
    ("w", "words"),
    [
        (jnp.ones((4, 4)).at[1, 1].set(jnp.nan), "NaN or an infinity"),
        (jnp.ones((4, 4)).at[1, 1].set(-jnp.inf), "NaN or an infinity"),
        (jnp.ones((4, 4), jnp.float16) * 70000, "NaN or an infinity"),
        (jnp.ones((0, 4)), "none of size 0"),
        (jnp.ones(4), "at least one input and one output"),
    ],
)
def test_weights_that_cannot_be_quantised_are_refused(w, words):
    with pytest.raises(ValueError, match=words):
        quantize(w, QuantSpec())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"format": "nf44"}, "nearest: 'nf4'"),
        ({"block_size": 0}, "even number"),
        ({"block_size": 63}, "even number"),
        ({"block_size": -64}, "even number"),
        (
            {"scale_dtype": "float16", "double": False},
            "scale_dtype must be one of float32, bfloat16, e8m0",
        ),
        ({"scale_dtype": "bfloat16"}, "double=False"),
        ({"second_level": "median"}, "second_level must be one of mean, log"),
        ({"format": "int4_asym", "scale_dtype": "e8m0", "double": False}, "symmetric"),
    ],
)
def test_wrong_specs_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        QuantSpec(**settings)


@pytest.mark.parametrize("out", [12, 13], ids=["equal", "odd"])
@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec("nf4", 8),
        QuantSpec("nf4", 8, second_level="log"),
        QuantSpec("fp4_e2m1", 16, second_level="tensor"),
        QuantSpec("int4_asym", 8),
        QuantSpec("fp4_e2m1", 32, False, "e8m0"),
        QuantSpec("int8", None, False),
    ],
    ids=str,
)
def test_columns_quantised_some_at_a_time_have_the_bytes_of_the_whole(spec, out):
    w = normal((4, 20, out))
    whole = quantize(jnp.asarray(w), spec, kernel_ndim=3, in_axes=(0, 1))
    half = np.asfortranarray(w)
    parts = quantize_by_columns(half, spec, in_axes=(0, 1), at_once=80 * 4)
    assert jax.tree.structure(parts) == jax.tree.structure(whole)
    for ours, theirs in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    half[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="it holds a NaN"):
        quantize_by_columns(half, spec, in_axes=(0, 1), at_once=80 * 4)
