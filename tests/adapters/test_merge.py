"""Merging: what the adapter computed, in every kind of site and storage; a report that says what it
cost; the base untouched.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax
from lora_jax.adapters.merge import compare_outputs, merge, merge_quantized
from lora_jax.adapters.requantize import requantize
from lora_jax.adapters.surgery import adapt
from tests.adapters.zoo import deep, kinds, moved

SPECS = {
    "lora": lora_jax.LoraSpec(rank=3, alpha=5.0),
    "rslora": lora_jax.LoraSpec(rank=3, alpha=5.0, scaling="rslora"),
    "dora": lora_jax.LoraSpec(rank=3, alpha=5.0, dora=True),
    "vera": lora_jax.LoraSpec(rank=3, variant="vera"),
    "adalora": lora_jax.LoraSpec(rank=3, variant="adalora"),
    "lora_fa": lora_jax.LoraSpec(rank=3, variant="lora_fa"),
    "pissa": lora_jax.LoraSpec(rank=3, alpha=5.0, init="pissa"),
}
MATRICES = r"(embed/embedding|raw|(dense|heads|merge|einsum|conv)/kernel)"


def adapted(
    spec: lora_jax.LoraSpec,
    quant=(),
    pattern: str = r"(layers/(up|down)|head)/kernel",
    build=lambda: deep("scan"),
):
    model, params, inputs = build()
    frozen, trainable = adapt(
        model, params, inputs, lora=[(pattern, spec)], quant=quant, key=jax.random.key(2)
    )
    return model, params, inputs, frozen, moved(trainable)


@pytest.mark.parametrize("name", SPECS)
def test_the_merged_model_computes_what_the_adapted_one_did(name: str) -> None:
    model, params, inputs, frozen, trainable = adapted(SPECS[name])
    merged, report = merge(frozen, trainable, model=model, sample=inputs)
    before, after = (
        lora_jax.apply(model, frozen, trainable, *inputs),
        model.apply({"params": merged}, *inputs),
    )
    # The same sums in another order; outputs are around 10.
    np.testing.assert_allclose(before, after, atol=3e-5)
    assert float(jnp.abs(before - model.apply({"params": params}, *inputs)).max()) > 0.1
    assert report.output.max_abs < 3e-5 and report.output.agreement == 1.0
    assert (
        set(report.error) == set(trainable)
        and max(report.error.values()) < 1e-6
        and min(report.change.values()) > 0.01
    )


def test_every_kind_of_site_and_a_tied_embedding_are_merged_right() -> None:
    model, _, inputs, frozen, trainable = adapted(SPECS["lora"], pattern=MATRICES, build=kinds)
    merged, report = merge(frozen, trainable)
    assert set(report.change) == set(trainable) and "embed/embedding" in report.change
    np.testing.assert_allclose(
        lora_jax.apply(model, frozen, trainable, *inputs),
        model.apply({"params": merged}, *inputs),
        atol=3e-5,
    )


def test_bfloat16_costs_what_the_report_says_and_hides_an_update_that_is_too_small() -> None:
    _, _, _, frozen, trainable = adapted(SPECS["lora"])
    merged, report = merge(frozen, trainable, dtype=jnp.bfloat16)
    assert merged["layers"]["up"]["kernel"].dtype == jnp.bfloat16
    exact = merge(frozen, trainable)[0]["head"]["kernel"]
    lost = jnp.linalg.norm(merged["head"]["kernel"].astype(jnp.float32) - exact) / jnp.linalg.norm(
        exact
    )
    assert report.error["head/kernel"] == pytest.approx(float(lost), rel=1e-5)
    assert (
        2**-11 < report.error["head/kernel"] < 2**-8
    )  # Half a unit in the 8th bit at most, uniformly spread.
    tiny = {path: leaf.replace(b=leaf.b * 1e-4) for path, leaf in trainable.items()}
    small = merge(jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen), tiny)[1]
    assert min(small.rounding.values()) > 0.9  # All of the update is lost, and the report says so.


def test_a_merge_is_undone_exactly_by_the_base_that_it_did_not_touch() -> None:
    model, params, inputs, frozen, trainable = adapted(
        SPECS["dora"], quant=[("layers/.*/kernel", lora_jax.QuantSpec("nf4", 8, False))]
    )
    before, base = lora_jax.fingerprint(frozen), lora_jax.apply(model, frozen, {}, *inputs)
    merge(frozen, trainable)
    merge_quantized(frozen, trainable)
    assert lora_jax.fingerprint(frozen) == before
    assert np.array_equal(lora_jax.apply(model, frozen, {}, *inputs), base)


def test_a_quantised_base_is_dequantised_or_quantised_again_and_the_report_tells_them_apart() -> (
    None
):
    spec = lora_jax.QuantSpec("int8", 8, False)
    model, _, inputs, frozen, trainable = adapted(SPECS["lora"], quant=[("layers/.*/kernel", spec)])
    dense, exact = merge(frozen, trainable, model=model, sample=inputs)
    again, coarse = merge_quantized(frozen, trainable, model=model, sample=inputs)
    assert (
        isinstance(again["layers"]["up"]["kernel"], lora_jax.core.QuantizedArray)
        and again["layers"]["up"]["kernel"].spec == spec
    )
    assert not isinstance(
        again["head"]["kernel"], lora_jax.core.QuantizedArray
    )  # Its base was not quantised.
    assert max(exact.error.values()) < 1e-6 and exact.output.max_abs < 3e-5
    # Rounding to 1/127 of a block's largest weight: below 1 % of the norm, and well above none.
    assert 1e-3 < coarse.error["layers/up/kernel"] < 1e-2 and coarse.error["head/kernel"] < 1e-6
    out = lora_jax.apply(model, again, {}, *inputs)
    assert coarse.output.max_abs == pytest.approx(
        float(jnp.abs(out - lora_jax.apply(model, frozen, trainable, *inputs)).max()), rel=1e-4
    )
    forced, _ = merge_quantized(frozen, trainable, spec=lora_jax.QuantSpec("nf4", 8, True))
    assert forced["head"]["kernel"].spec.format == "nf4"


@pytest.mark.parametrize(
    "spec",
    [
        lora_jax.QuantSpec("nf4", 16, False),
        lora_jax.QuantSpec("int4", None, False),
        lora_jax.QuantSpec("int8", 16, False),
    ],
)
def test_feeding_errors_back_lowers_the_error_of_the_outputs(spec: lora_jax.QuantSpec) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 8)) @ rng.normal(size=(8, 33)) + 0.1 * rng.normal(
        size=(400, 33)
    )  # Inputs that go together.
    w = jnp.asarray(rng.normal(size=(33, 20)), jnp.float32)
    lost = lambda q: float(np.linalg.norm(x @ (np.asarray(q.unbox()) - np.asarray(w))))
    plain, fed = requantize(w, spec), requantize(w, spec, moments=x.T @ x)
    assert lost(fed) < 0.6 * lost(plain)
    # With inputs that do not go together there is nothing to feed back: the nearest levels are the
    # best ones.
    np.testing.assert_array_equal(requantize(w, spec, moments=np.eye(33)).unbox(), plain.unbox())


def test_feeding_back_works_layer_by_layer_and_on_other_axes() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 100, 3)) @ rng.normal(size=(2, 3, 12))
    moments = np.swapaxes(x, 1, 2) @ x
    w = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)  # (layers, heads, size, out)
    spec = lora_jax.QuantSpec("nf4", 4, False)
    both = requantize(w, spec, kernel_ndim=3, in_axes=(0, 1), moments=moments)
    for layer in range(2):
        one = requantize(w[layer], spec, kernel_ndim=3, in_axes=(0, 1), moments=moments[layer])
        np.testing.assert_array_equal(both.unbox()[layer], one.unbox())


def test_the_whole_model_is_merged_into_4_bits_with_less_change_of_its_output_when_errors_are_fed_back() -> (
    None
):
    spec = lora_jax.QuantSpec("nf4", 8, False)
    model, params, (x,), frozen, trainable = adapted(
        SPECS["lora"], quant=[("head/kernel", spec)], pattern="head/kernel"
    )
    x = jnp.tile(x, (16, 1)) + 0.05 * jax.random.normal(jax.random.key(5), (64, 8))
    identity = {**params, "head": {"kernel": jnp.eye(8)[:, :3], "bias": jnp.zeros(3)}}
    columns = [
        model.apply(
            {
                "params": {
                    **identity,
                    "head": {"kernel": jnp.roll(jnp.eye(8), -k, 0)[:, :3], "bias": jnp.zeros(3)},
                }
            },
            x,
        )
        for k in (0, 5, 3)
    ]
    hidden = np.concatenate([columns[0], columns[1], columns[2][:, 1:]], 1)
    moments = {"head/kernel": hidden.T @ hidden}
    nearest = merge_quantized(frozen, trainable, model=model, sample=(x,))[1]
    fed = merge_quantized(frozen, trainable, moments=moments, model=model, sample=(x,))[1]
    assert (
        fed.output.mean_abs < nearest.output.mean_abs
        and fed.error["head/kernel"] > nearest.error["head/kernel"]
    )


def test_what_cannot_be_merged_is_refused() -> None:
    _, _, _, frozen, trainable = adapted(
        SPECS["lora"], quant=[("head/kernel", lora_jax.QuantSpec("nf4", 8, False))]
    )
    broken = {
        **trainable,
        "head/kernel": trainable["head/kernel"].replace(b=trainable["head/kernel"].b * jnp.nan),
    }
    for function in (merge, merge_quantized):
        with pytest.raises(ValueError, match="'head/kernel' holds a NaN"):
            function(frozen, broken)
    with pytest.raises(KeyError, match="layers/upp/kernel.*Nearest: layers/up/kernel"):
        merge_quantized(frozen, trainable, moments={"layers/upp/kernel": np.eye(8)})
    with pytest.raises(ValueError, match=r"need the shape \(8, 8\)"):
        merge_quantized(frozen, trainable, moments={"head/kernel": np.eye(7)})


def test_the_change_of_outputs_is_that_of_its_definition() -> None:
    same = compare_outputs(jnp.ones((2, 3)), jnp.ones((2, 3)))
    assert (same.max_abs, same.divergence, same.agreement) == (0.0, 0.0, 1.0)
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    change = compare_outputs(jnp.log(jnp.asarray(p))[None], jnp.log(jnp.asarray(q))[None])
    assert change.divergence == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-5)
    assert "divergence 5.11e-01 nats" in str(change)
