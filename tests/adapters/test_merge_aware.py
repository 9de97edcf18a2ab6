"""Merge-aware adapters: what is trained is, bit for bit, what merging into the quantised base stores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax
from lora_jax.adapters.algebra import weighted_sum
from lora_jax.adapters.many import make_bank
from lora_jax.adapters.merge import merge, merge_quantized
from lora_jax.adapters.surgery import adapt
from lora_jax.core.lowrank import LowRank
from lora_jax.core.quantize import dequantize, quantize
from lora_jax.core.rounded import exact_product
from lora_jax.io.adapter import load_adapter, save_adapter
from lora_jax.io.bitsandbytes import quantize_4bit
from lora_jax.models.decoder import ExpertsMlp
from lora_jax.models.decoder_config import DecoderConfig, Experts
from tests.adapters.test_merge import MATRICES
from tests.adapters.zoo import deep, kinds, moved

AWARE = lora_jax.LoraSpec(rank=3, alpha=5.0, merge_aware=True)
SPEC = lora_jax.QuantSpec(block_size=4)
DEEP = r"(layers/(up|down)|head)/kernel"


def adapted(spec=AWARE, pattern=DEEP, build=lambda: deep("scan"), quant=SPEC):
    model, params, inputs = build()
    frozen, trainable = adapt(
        model,
        params,
        inputs,
        lora=[(pattern, spec)],
        quant=[(pattern, quant)],
        key=jax.random.key(2),
    )
    return model, inputs, frozen, moved(trainable)


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def factors(**fields) -> LowRank:
    a, b = jax.random.normal(jax.random.key(1), (2, 12, 6))
    return LowRank(a=a, b=0.3 * b.T, scale=jnp.full(6, 0.7), **fields)


FORMATS = [
    *(lora_jax.QuantSpec(name, 4) for name in ("nf2", "nf3", "nf4", "nf5", "nf6", "nf7", "nf8")),
    *(lora_jax.QuantSpec(f"int{bits}", 4) for bits in range(2, 9)),
    *(lora_jax.QuantSpec(f"int{bits}_asym", 4) for bits in (2, 4, 8)),
    lora_jax.QuantSpec("fp4", None, double=False),
    lora_jax.QuantSpec("nf4", 4, second_level="log"),
    lora_jax.QuantSpec("fp4_e2m1", 4, second_level="tensor"),
    lora_jax.QuantSpec("nf4", 8, double=False, scale_dtype="bfloat16"),
    lora_jax.QuantSpec("fp8_e4m3", 4, double=False, scale_dtype="e8m0"),
]


@pytest.mark.parametrize("spec", FORMATS, ids=lambda spec: f"{spec.format}-{spec.scale_dtype}")
def test_an_update_of_zero_keeps_every_weight_and_others_come_nearer_to_the_sum(spec):
    base = quantize(jax.random.normal(jax.random.key(0), (12, 12)), spec)
    low = factors(rounded="kept")
    two = jax.tree.map(lambda x: jnp.stack([x, x]), low)
    two = two.replace(b=two.b.at[0].set(0))
    # As layers of a stack, of which the first has no update.
    stack = jax.tree.map(lambda x: jnp.stack([x, x]), base)
    both = jax.jit(lambda low, base: low.onto_rounded(base).merged())(two, stack)
    still, merged = (jax.tree.map(lambda x, n=n: x[n], both) for n in (0, 1))
    assert_same(still.unbox(), base.unbox())
    assert_same(merged.scale, base.scale)

    # The base's own codes are no nearer to the sum at any weight (the factors' grid: 2e-3).
    exact = base.matrix(jnp.float32) + low.delta()
    off, before = (jnp.abs(q.matrix(jnp.float32) - exact) for q in (merged, base))
    assert (off <= before + 2e-3 * jnp.abs(exact).max()).all() and off.sum() < before.sum()


@pytest.mark.parametrize("scales", ("kept", "refitted"))
@pytest.mark.parametrize("name", ("nf4", "int4_asym"))
def test_bytes_are_the_same_operation_by_operation_and_compiled(name, scales):
    base = quantize(jax.random.normal(jax.random.key(0), (12, 12)), lora_jax.QuantSpec(name, 4))
    low = factors(rounded=scales, magnitude=jnp.full(12, 3.0))
    merged = low.onto_rounded(base).merged()
    assert_same(jax.jit(lambda low, base: low.onto_rounded(base).merged())(low, base), merged)
    # Padding to a wider group of runs, and a layer that is not adapted, change no byte.
    assert_same(low.with_rank(9).onto_rounded(base).merged(), merged)
    assert_same(low.replace(scale=0 * low.scale).onto_rounded(base).merged(), base)


def test_the_products_of_factors_add_up_without_rounding_in_any_order():
    a, b = jax.random.normal(jax.random.key(3), (2, 64, 64))
    order = jax.random.permutation(jax.random.key(4), 64)
    found = exact_product(a, b)
    assert_same(found, exact_product(a[:, order], b[order]))
    np.testing.assert_allclose(found, a @ b, atol=64 * 2e-2)


def test_every_kind_of_site_computes_what_its_merged_weight_does_and_so_does_the_dense_read():
    model, inputs, frozen, trainable = adapted(pattern=MATRICES, build=kinds)
    merged, report = merge_quantized(frozen, trainable)
    ways = {
        "factored": lambda t: lora_jax.apply(model, frozen, t, *inputs),
        "dense": lambda t: model.apply({"params": lora_jax.join(frozen, t)}, *inputs),
    }
    trained, fixed = lora_jax.partition(trainable)

    def loss(trained, way):
        y = ways[way](lora_jax.combine(trained, fixed))
        return jnp.sum(jnp.sin(y)), y

    found = {
        way: jax.jit(jax.value_and_grad(lambda t, way=way: loss(t, way), has_aux=True))(trained)
        for way in ways
    }
    after = jax.jit(lambda merged: lora_jax.apply(model, merged, {}, *inputs))(merged)
    assert_same(found["factored"][0][1], after)
    # Sums in another order; outputs are around 10.
    np.testing.assert_allclose(found["dense"][0][1], after, atol=3e-5)
    for one, two in zip(*(jax.tree.leaves(found[way][1]) for way in ways)):
        np.testing.assert_allclose(one, two, atol=2e-4 * float(jnp.abs(one).max()))
    assert max(report.rounding.values()) == 0 and min(report.change.values()) > 0.01


@pytest.mark.parametrize(
    "fields", [dict(dora=True), dict(init="pissa"), dict(merge_scales="refitted")], ids=str
)
def test_layers_of_a_scan_compute_what_their_merged_weights_do(fields):
    model, inputs, frozen, trainable = adapted(dataclasses.replace(AWARE, **fields))
    trained, fixed = lora_jax.partition(trainable)

    def loss(trained):
        y = lora_jax.apply(model, frozen, lora_jax.combine(trained, fixed), *inputs)
        return jnp.sum(y * y), y

    (_, before), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained)
    merged, _ = merge_quantized(frozen, trainable)
    apply = jax.jit(lambda merged: lora_jax.apply(model, merged, {}, *inputs))
    assert_same(before, apply(merged))
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))
    assert_same(merge(frozen, trainable)[0]["head"]["kernel"], merged["head"]["kernel"].unbox())


def test_experts_that_each_token_chooses_compute_what_their_merged_weights_do():
    experts = Experts(count=3, per_token=2, intermediate_size=8)
    sizes = dict(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1)
    sizes |= dict(head_dim=4, intermediate_size=8, max_positions=8, experts=experts)
    config = DecoderConfig(**sizes)
    model, x = ExpertsMlp(config, jnp.float32), jax.random.normal(jax.random.key(0), (2, 5, 8))
    params = model.init(jax.random.key(1), x)["params"]
    pattern = "experts/(gate|up|down)/kernel"
    model, _, frozen, trainable = adapted(pattern=pattern, build=lambda: (model, params, (x,)))
    assert trainable["experts/up/kernel"].a.shape == (3, 8, 3)

    merged, report = merge_quantized(frozen, trainable)
    y = jax.jit(lambda frozen, trainable: lora_jax.apply(model, frozen, trainable, x))
    assert_same(y(frozen, trainable), y(merged, {}))
    assert max(report.rounding.values()) == 0 and min(report.change.values()) > 0.01


def test_the_layout_of_bitsandbytes_is_merged_in_its_own_blocks():
    w = jax.random.normal(jax.random.key(0), (12, 12))
    base = quantize_4bit(w, block_size=64, double=False)
    low = factors(rounded="kept")
    merged = low.onto_rounded(base).merged()
    assert type(merged) is type(base)
    gap = 0.2 * float(jnp.abs(w).max())
    exact = base.matrix(jnp.float32) + low.delta()
    # Weights above the stored scale go to the largest level.
    assert float(jnp.median(jnp.abs(merged.unbox() - exact))) < gap / 2


def test_a_file_says_that_it_is_merge_aware_and_what_would_compute_otherwise_refuses(tmp_path):
    model, inputs, frozen, trainable = adapted()
    save_adapter(tmp_path, trainable, base="b", model="m")
    loaded, _ = load_adapter(tmp_path)
    assert loaded["head/kernel"].rounded == "kept"

    dense = dequantize(frozen)
    for wrong, words in (
        (lambda: lora_jax.join(dense, trainable), "here the base is dense"),
        (lambda: weighted_sum([trainable, trainable]), "merge-aware: its effect"),
        (lambda: make_bank([trainable]), "rounds its own sum"),
        (lambda: dataclasses.replace(AWARE, dropout=0.1), "Set it to 0"),
        (lambda: dataclasses.replace(AWARE, variant="qa_lora"), "zero-points"),
        (
            lambda: adapted(dataclasses.replace(AWARE, init="loftq", rank=2)),
            "nothing of that start",
        ),
        (lambda: adapt(model, dense, inputs, lora=[(DEEP, AWARE)], key=jax.random.key(0)), "exact"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()
