"""adapt and merge: three independent selections, nothing held twice, and honest figures about what
merging did.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from user_models import MATRICES, adapted, build, same_bits, with_b

from lora_jax import LoraSpec, QuantSpec, adapt, bytes_of, merge, trainable_parameters
from lora_jax.core import QuantizedArray, TrainedWeight
from lora_jax.core.paths import flatten

KEY = jax.random.key(0)


def test_what_is_quantised_adapted_and_trained_whole_is_chosen_independently() -> None:
    built = build("scan")
    frozen, trainable = adapt(
        built.model,
        built.params,
        built.inputs,
        lora=[
            (".*attn/out/kernel", None),
            (".*attn/.*kernel", LoraSpec(2)),
            (".*up/kernel", LoraSpec(4, scaling="rslora")),
        ],
        quant=[(".*up/kernel", QuantSpec("int8", 4)), (".*(down|out)/kernel", QuantSpec("nf4", 4))],
        whole=["norm/.*"],
        key=KEY,
    )
    flat = flatten(frozen)
    assert {
        path: leaf.spec.format for path, leaf in flat.items() if isinstance(leaf, QuantizedArray)
    } == {
        "blocks/up/kernel": "int8",
        "blocks/down/kernel": "nf4",
        "blocks/attn/out/kernel": "nf4",
    }
    assert {
        path: "whole" if isinstance(leaf, TrainedWeight) else leaf.rank
        for path, leaf in trainable.items()
    } == {
        "blocks/attn/query/kernel": 2,
        "blocks/attn/key/kernel": 2,
        "blocks/attn/value/kernel": 2,
        "blocks/up/kernel": 4,
        "norm/bias": "whole",
        "norm/scale": "whole",
    }
    assert np.allclose(trainable["blocks/up/kernel"].scale, 16 / 2) and np.allclose(
        trainable["blocks/attn/key/kernel"].scale, 16 / 2
    )
    # A weight that is trained whole is in one tree only.
    assert set(flat) == set(flatten(built.params)) - {"norm/bias", "norm/scale"}
    # 3 kernels of 2 layers, 8 x 8 at rank 2; 2 layers, 8 x 12 at rank 4; two vectors of 8.
    assert trainable_parameters(trainable) == 3 * 2 * 2 * 16 + 2 * 4 * 20 + 16


def test_adapting_changes_no_input_and_depends_on_the_key_alone() -> None:
    built = build("scan")
    before = jax.tree.map(lambda x: np.array(x), built.params)
    one, two = adapted(built), adapted(built)
    assert same_bits(one, two)
    assert same_bits(jax.tree.map(np.asarray, built.params), before)
    _, other = adapt(
        built.model,
        built.params,
        built.inputs,
        lora=[(MATRICES, LoraSpec(2))],
        key=jax.random.key(9),
    )
    assert not np.allclose(other["blocks/up/kernel"].a, one[1]["blocks/up/kernel"].a)
    # Two sites of equal shape, and two layers of one site, start apart.
    assert not np.allclose(
        one[1]["blocks/attn/query/kernel"].a, one[1]["blocks/attn/value/kernel"].a
    )
    assert not np.allclose(one[1]["blocks/up/kernel"].a[0], one[1]["blocks/up/kernel"].a[1])


def test_layers_that_are_left_out_have_no_parameters_and_no_effect() -> None:
    built = build("scan")
    rules = [("blocks/up/kernel", LoraSpec(2, layers=(1,)))]
    frozen, trainable = adapt(built.model, built.params, built.inputs, lora=rules, key=KEY)
    trainable = with_b(trainable)
    assert trainable_parameters(trainable) == 2 * (8 + 12)
    kernel = merge(frozen, trainable)[0]["blocks"]["up"]["kernel"]
    assert np.array_equal(kernel[0], built.params["blocks"]["up"]["kernel"][0])
    assert not np.allclose(kernel[1], built.params["blocks"]["up"]["kernel"][1])


def test_weights_trained_whole_are_the_callers_no_more() -> None:
    """A training step donates what it trains; the caller's array must survive that."""
    weight = jnp.ones((4, 3))
    _, trainable = adapt(
        nn.Dense(3, use_bias=False), {"kernel": weight}, (jnp.ones((1, 4)),), whole=[".*"], key=KEY
    )
    trainable["kernel"].value.delete()
    assert float(weight.sum()) == 12.0


def test_weights_of_another_model_are_refused_by_name() -> None:
    built = build("loop")
    params = {**built.params, "extra": {"kernel": jnp.ones((2, 2))}}
    del params["words"]
    with pytest.raises(
        ValueError,
        match=r"not this model's: missing \['words/embedding'\] \(1\), unexpected \['extra/kernel'\] \(1\)",
    ):
        adapt(built.model, params, built.inputs, whole=[".*"], key=KEY)
    wrong = {**built.params, "words": {"embedding": jnp.ones((21, 8))}}
    with pytest.raises(
        ValueError, match=r"'words/embedding' has shape \(21, 8\); the model needs \(20, 8\)"
    ):
        adapt(built.model, wrong, built.inputs, whole=[".*"], key=KEY)


def test_a_nan_in_a_weight_stops_quantisation_with_its_name() -> None:
    params = {"kernel": jnp.ones((4, 3)).at[1, 1].set(jnp.nan)}
    with pytest.raises(ValueError, match="kernel: Cannot quantise .* holds a NaN"):
        adapt(
            nn.Dense(3, use_bias=False),
            params,
            (jnp.ones((1, 4)),),
            lora=[(".*", LoraSpec(1))],
            quant=[(".*", QuantSpec(block_size=4))],
            key=KEY,
        )


def test_quantised_weights_are_not_quantised_again() -> None:
    built = build("scan")
    frozen, _ = adapted(built, [(MATRICES, QuantSpec("nf4", 4))])
    again, trainable = adapt(
        built.model, frozen, built.inputs, lora=[(".*up/kernel", LoraSpec(2))], key=KEY
    )
    assert same_bits(again, frozen) and set(trainable) == {"blocks/up/kernel"}
    with pytest.raises(ValueError, match="'blocks/up/kernel' is quantised already .nf4."):
        adapt(
            built.model,
            frozen,
            built.inputs,
            lora=[(".*down/kernel", LoraSpec(2))],
            quant=[(".*up/kernel", QuantSpec())],
            key=KEY,
        )


# --- merge ---------------------------------------------------------------------------------------------------------


def dense_case(dtype: Any, size: float) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.standard_normal((32, 16)), dtype)
    frozen, trainable = adapt(
        nn.Dense(16, use_bias=False),
        {"kernel": kernel},
        (jnp.ones((1, 32)),),
        lora=[(".*", LoraSpec(4, alpha=8.0))],
        key=KEY,
    )
    trainable = with_b(trainable, size)
    a, b = (np.asarray(x, np.float64) for x in (trainable["kernel"].a, trainable["kernel"].b))
    return frozen, trainable, np.asarray(kernel, np.float64), 2.0 * (a @ b)


@pytest.mark.parametrize(
    ("dtype", "size"), [(jnp.float32, 0.3), (jnp.bfloat16, 0.3), (jnp.bfloat16, 1e-4)]
)
def test_the_merge_report_says_how_far_a_weight_moved_and_what_rounding_cost(
    dtype: Any, size: float
) -> None:
    frozen, trainable, base, update = dense_case(dtype, size)
    plain, report = merge(frozen, trainable)
    assert plain["kernel"].dtype == dtype
    merged = np.asarray(plain["kernel"], np.float64)
    moved = np.linalg.norm(update)
    assert report.change["kernel"] == pytest.approx(moved / np.linalg.norm(base), rel=1e-3)
    assert report.rounding["kernel"] == pytest.approx(
        np.linalg.norm(merged - base - update) / moved, rel=1e-2, abs=1e-6
    )
    # bfloat16 keeps 8 bits: an update of a ten-thousandth is lost, and the report says so.
    assert (report.rounding["kernel"] > 0.9) == (size == 1e-4)
    assert str(report).startswith("kernel: change ")


def test_merging_to_another_dtype_rounds_once() -> None:
    frozen, trainable, base, update = dense_case(jnp.float32, 0.3)
    plain, report = merge(frozen, trainable, dtype=jnp.bfloat16)
    exact = (base + update).astype(np.float32)
    assert plain["kernel"].dtype == jnp.bfloat16
    # One rounding to 8 bits: at most half a unit in the last place, 2**-9, and the float32 sum
    # before it.
    assert np.all(
        np.abs(np.asarray(plain["kernel"], np.float64) - exact) <= np.abs(exact) * 2.0**-8
    )
    assert 0 < report.rounding["kernel"] < 0.05


def test_merging_leaves_no_box_and_touches_nothing_else() -> None:
    built = build("scan")
    frozen, trainable = adapt(
        built.model, built.params, built.inputs, lora=[(".*up/kernel", LoraSpec(2))], quant=[(".*down/kernel", QuantSpec("nf4", 4))],
        whole=["norm/.*"], key=KEY,
    )  # fmt: skip
    plain, report = merge(frozen, with_b(trainable))
    assert set(report.change) == {"blocks/up/kernel"}
    ours, before = flatten(plain), flatten(built.params)
    assert list(ours) == list(before) or set(ours) == set(before)
    for path, leaf in ours.items():
        assert isinstance(leaf, jax.Array) and leaf.shape == before[path].shape
        if path not in ("blocks/up/kernel", "blocks/down/kernel"):
            assert np.array_equal(leaf, before[path])
    assert bytes_of(plain) == bytes_of(built.params)


def test_a_fresh_adapter_merges_to_the_base_bit_for_bit() -> None:
    built = build("loop")
    frozen, trainable = adapted(built, trained=False)
    plain, report = merge(frozen, trainable)
    assert same_bits(plain, dict(built.params))
    assert set(report.change.values()) == {0.0} and set(report.rounding.values()) == {0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_or_infinity_is_never_merged(bad: float) -> None:
    frozen, trainable, _, _ = dense_case(jnp.float32, 0.3)
    broken = {"kernel": trainable["kernel"].replace(b=trainable["kernel"].b.at[0, 0].set(bad))}
    with pytest.raises(ValueError, match="'kernel' holds a NaN or an infinity; nothing was merged"):
        merge(frozen, broken)
    with pytest.raises(ValueError, match="'kernel' holds a NaN or an infinity; nothing was merged"):
        merge({}, {"kernel": TrainedWeight(value=jnp.full((2, 2), bad))})
