"""The decoder is an ordinary Linen module: adapters and quantisation work on every kind of it,
packed rows do not mix.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.adapters.apply import apply, join
from lora_jax.adapters.merge import merge
from lora_jax.adapters.sites import find_sites
from lora_jax.adapters.surgery import adapt
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.quantize import QuantSpec
from lora_jax.core.trainable import combine, partition
from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder, positions_of
from lora_jax.models.decoder_config import DecoderConfig, Experts
from lora_jax.models.rotary import (
    Rotary,
    attention_factor,
    inverse_frequencies,
    rotary_angles,
    rotate,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
TOKENS = np.arange(3, 27).reshape(2, 12)


@pytest.mark.parametrize(
    ("name", "options"),
    [("qwen2_moe", {}), ("gemma3", {"remat": True}), ("gpt_neox", {"scan": False})],
)
def test_factored_boxed_and_merged_adapters_compute_the_same(name, options):
    config, params = load_decoder(GOLDEN / name, scan=options.get("scan", True))
    model = Decoder(config, **options)
    rules, quant = (
        [(".*(kernel|embedding)", LoraSpec(rank=1))],
        [("layers.*(q|up|down)/kernel", QuantSpec("nf4", 4))],
    )
    frozen, trainable = adapt(
        model, params, (TOKENS,), lora=rules, quant=quant, key=jax.random.key(0)
    )
    trainable = {
        path: low.replace(b=0.3 * jax.random.normal(jax.random.key(len(path)), low.b.shape))
        for path, low in trainable.items()
    }
    factored = jax.jit(lambda frozen, trainable: apply(model, frozen, trainable, TOKENS))(
        frozen, trainable
    )
    boxed = jax.jit(
        lambda frozen, trainable: model.apply({"params": join(frozen, trainable)}, TOKENS)
    )(frozen, trainable)
    merged = jax.jit(lambda params: model.apply({"params": params}, TOKENS))(
        merge(frozen, trainable)[0]
    )
    plain = jax.jit(lambda params: model.apply({"params": params}, TOKENS))(params)
    # float32 sums in another order, logits of order 1 through two or three layers.
    np.testing.assert_allclose(factored, boxed, atol=1e-4)
    np.testing.assert_allclose(factored, merged, atol=1e-4)
    assert np.abs(factored - plain).max() > 0.1


def test_every_matrix_is_a_site_with_a_factored_product():
    config, _ = load_decoder(GOLDEN / "mixtral")
    sites = find_sites(Decoder(config), jax.ShapeDtypeStruct((1, 4), jnp.int32))
    assert all(site.has_rule for site in sites.values() if site.is_matrix)
    assert sites["layers/mlp/experts/up/kernel"].stack == (2, 4)
    assert {path for path in sites if path.startswith("layers/attn/")} == {
        f"layers/attn/{x}/kernel" for x in "qkvo"
    }


def test_texts_that_share_a_row_do_not_see_each_other():
    config, params = load_decoder(GOLDEN / "gemma3")
    run = jax.jit(Decoder(config).apply)
    segments = np.array([[1] * 5 + [2] * 6 + [0], [1] * 12])
    packed = run({"params": params}, TOKENS, segments)
    other = run({"params": params}, np.where(segments == 1, 7, TOKENS), segments)
    alone = run(
        {"params": params},
        np.concatenate([TOKENS[:, 5:], TOKENS[:, :5]], 1),
        np.array([[1] * 6 + [0] * 6] * 2),
    )
    np.testing.assert_allclose(packed[0, 5:11], other[0, 5:11], atol=1e-6)
    np.testing.assert_allclose(packed[0, 5:11], alone[0, :6], atol=1e-5)
    assert positions_of(jnp.asarray(segments))[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0]


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    rotary = Rotary(fraction=0.5)
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 6, 1, 16))
    scores = []
    for shift in (0, 40):
        angles = rotary_angles(rotary, 16, jnp.arange(6)[None] + shift)
        a, b = rotate(q, *angles), rotate(k, *angles)
        np.testing.assert_allclose(
            jnp.linalg.norm(a, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5
        )
        np.testing.assert_array_equal(a[..., 8:], q[..., 8:])
        scores.append(jnp.einsum("bqhd,bkhd->qk", a, b))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_yarn_keeps_fast_channels_and_stretches_slow_ones():
    plain, yarn = Rotary(), Rotary(scaling="yarn", factor=8.0, original_positions=4096)
    ratio = inverse_frequencies(plain, 64) / inverse_frequencies(yarn, 64)
    np.testing.assert_allclose(ratio[[0, -1]], [1.0, 8.0], rtol=1e-5)
    assert (np.diff(ratio) >= -1e-5).all()
    # transformers 5.23's, with the limits of the ramp rounded and as they are.
    for truncate, theirs in ((True, [0.23717082, 0.05]), (False, [0.19858353, 0.02559525])):
        yarn = Rotary(scaling="yarn", factor=4.0, original_positions=64, truncate=truncate)
        np.testing.assert_allclose(inverse_frequencies(yarn, 16)[1:3], theirs, rtol=1e-6)
    assert attention_factor(yarn) == pytest.approx(1.1386294361, rel=1e-9)
    both = replace(yarn, mscale=0.8, mscale_all_dim=0.5)
    assert attention_factor(both) == pytest.approx(1.0388929, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(num_kv_heads=3), "multiple of num_kv_heads"),
        (dict(activation="tanh"), "Unknown activation"),
        (dict(local_layers=(True,)), "each of 2 layers and a window"),
        (dict(window=0), "at least 1"),
        (dict(hidden_size=0), "hidden_size must be"),
    ],
)
def test_a_configuration_that_cannot_be_is_an_error(change, said):
    sizes = dict(
        vocab_size=8,
        hidden_size=8,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=2,
        intermediate_size=8,
        max_positions=8,
    )
    with pytest.raises(ValueError, match=said):
        DecoderConfig(**sizes | change)
    with pytest.raises(ValueError, match="between 1 and 4"):
        Experts(4, 5, 8)
    with pytest.raises(ValueError, match="original_positions"):
        Rotary(scaling="yarn")


def temporaries(layers: int, remat: bool) -> int:
    config = DecoderConfig(
        vocab_size=64, hidden_size=32, num_layers=layers, num_heads=4, num_kv_heads=1, head_dim=16, intermediate_size=128, max_positions=64,
        activation="gelu_tanh", qk_norm=True, post_norms=True,
    )  # fmt: skip
    model, tokens = Decoder(config, remat=remat), jax.ShapeDtypeStruct((4, 64), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    rules = [("layers/.*kernel", LoraSpec(rank=2))]
    make = lambda params: adapt(model, params, (tokens,), lora=rules, key=jax.random.key(0))
    frozen, trainable = jax.eval_shape(make, params)
    trained, fixed = partition(trainable)
    loss = lambda trained, frozen, fixed, tokens: (
        apply(model, frozen, combine(trained, fixed), tokens, method="hidden")[0] ** 2
    ).sum()
    return (
        jax.jit(jax.grad(loss))
        .lower(trained, frozen, fixed, tokens)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


def test_a_layer_keeps_its_products_and_a_recomputed_one_its_input():
    token = 4 * 4 * 64  # bytes of a number for each token
    growth = {
        remat: (temporaries(12, remat) - temporaries(6, remat)) / 6 / token
        for remat in (False, True)
    }
    products = (
        32 * 3 + (2 * 64 + 2 * 16) + 2 * 128
    )  # input, o and down; q, values, k, v; gate and up
    factors = (
        2 * 2 * (4 * 32 + 3 * 128 + 3 * 64 + 2 * 16 + 2 * 32) * 4 / token
    )  # gradients of a and b, at most twice
    assert products <= growth[False] < 1.05 * products + factors
    assert 32 <= growth[True] < 1.05 * 32 + factors
