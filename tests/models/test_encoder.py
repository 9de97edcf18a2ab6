"""The encoder computes what transformers' BertModel computes, however its blocks are repeated."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lora_jax import LoraSpec, QuantSpec, adapt, apply
from lora_jax.core.paths import flatten
from lora_jax.core.trainable import combine, partition
from lora_jax.io import load_encoder
from lora_jax.models import Encoder, EncoderConfig
from lora_jax.models.deberta import DebertaConfig
from lora_jax.models.encoder_parts import ACTIVATIONS

GOLDEN = (
    Path(__file__).parents[1] / "golden" / "minilm.npz"
)  # made by experiments/make_golden_minilm.py
TINY = dict(
    vocab_size=30, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12, max_positions=16
)


@pytest.mark.parametrize(("scan", "remat"), [(True, False), (False, False), (True, True)])
def test_hidden_states_equal_transformers(minilm_folder: Path, scan: bool, remat: bool) -> None:
    golden = np.load(GOLDEN)
    config, params = load_encoder(minilm_folder, scan=scan)
    model = Encoder(config, scan=scan, remat=remat)
    hidden, pooled = jax.jit(
        lambda params: model.apply({"params": params}, golden["tokens"], golden["mask"])
    )(params)
    # Six layers of float32 in another order of summation; measured below 1e-5 on values up to 3.
    real = golden["mask"][..., None]
    assert (
        np.abs((hidden - golden["hidden"]) * real).max() < 1e-4
        and np.abs(pooled - golden["pooled"]).max() < 1e-4
    )
    assert np.linalg.norm(hidden * real) == pytest.approx(golden["norms"][-1], rel=1e-5)


def test_logits_equal_transformers(minilm_folder: Path) -> None:
    golden = np.load(GOLDEN)
    config, params = load_encoder(minilm_folder, num_classes=2, key=jax.random.key(0))
    rows = np.arange(config.hidden_size)
    params["classifier"] = {
        "kernel": np.stack([np.sin(rows + 10 * j) / 10 for j in range(2)], 1).astype(np.float32),
        "bias": np.asarray([0.1, -0.1], np.float32),
    }
    logits = jax.jit(Encoder(config).apply)({"params": params}, golden["tokens"], golden["mask"])
    assert np.abs(logits - golden["logits"]).max() < 1e-4


def test_padding_changes_no_real_token_and_scan_changes_nothing() -> None:
    config = EncoderConfig(**TINY)
    rng = np.random.default_rng(0)
    tokens, mask = jnp.asarray(rng.integers(0, 30, (2, 6)), jnp.int32), jnp.ones((2, 6), bool)
    loop, scan = Encoder(config, scan=False), Encoder(config)
    params = loop.init(jax.random.key(0), tokens, mask)["params"]
    layers = [params[f"layers_{index}"] for index in range(2)]
    stacked = {name: leaf for name, leaf in params.items() if not name.startswith("layers_")}
    stacked["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    hidden, pooled = loop.apply({"params": params}, tokens, mask)
    for ours in (
        scan.apply({"params": stacked}, tokens, mask),
        Encoder(config, remat=True).apply({"params": stacked}, tokens, mask),
    ):
        assert np.allclose(ours[0], hidden, atol=1e-5) and np.allclose(ours[1], pooled, atol=1e-5)
    wide = jnp.pad(tokens, ((0, 0), (0, 4)), constant_values=7)
    padded, padded_pooled = scan.apply({"params": stacked}, wide, jnp.pad(mask, ((0, 0), (0, 4))))
    assert np.allclose(padded[:, :6], hidden, atol=1e-5) and np.allclose(
        padded_pooled, pooled, atol=1e-5
    )
    # A row without any token is finite: it may stand in a batch, with weight 0.
    assert np.isfinite(scan.apply({"params": stacked}, tokens, jnp.zeros((2, 6), bool))[0]).all()


def test_segment_ids_matter_and_default_to_zero() -> None:
    model = Encoder(EncoderConfig(**TINY, num_classes=3))
    tokens, mask = jnp.ones((2, 4), jnp.int32), jnp.ones((2, 4), bool)
    params = model.init(jax.random.key(0), tokens, mask)
    zeros, none = (
        model.apply(params, tokens, mask, jnp.zeros((2, 4), jnp.int32)),
        model.apply(params, tokens, mask),
    )
    assert none.shape == (2, 3) and np.array_equal(zeros, none)
    assert not np.allclose(model.apply(params, tokens, mask, jnp.ones((2, 4), jnp.int32)), none)


def test_bfloat16_products_keep_float32_weights_and_stay_near() -> None:
    tokens, mask = jnp.arange(8, dtype=jnp.int32).reshape(2, 4), jnp.ones((2, 4), bool)
    full = Encoder(EncoderConfig(**TINY))
    half = Encoder(EncoderConfig(**TINY), dtype=jnp.bfloat16)
    params = half.init(jax.random.key(0), tokens, mask)
    assert {str(leaf.dtype) for leaf in flatten(params).values()} == {"float32"}
    hidden = half.apply(params, tokens, mask)[0]
    assert hidden.dtype == jnp.bfloat16
    # 8 bits a product, two layers, values up to 3 after a norm.
    assert np.abs(np.asarray(hidden, np.float32) - full.apply(params, tokens, mask)[0]).max() < 0.1


DEBERTA = dict(buckets=4, max_distance=8, conv_size=3)
RATES = dict(dropout=0.2, attention_dropout=0.2, head_dropout=0.2)
TOKENS = jnp.asarray([[1, 5, 6, 7], [1, 8, 9, 0]], jnp.int32)


def with_rates(kind: str, **options: Any) -> tuple[Any, Any]:
    """An encoder of two layers with dropout, and the same without it."""
    deberta = kind == "deberta-v2"
    sizes = TINY | dict(num_classes=3, family=kind) | (DEBERTA if deberta else {})
    make = DebertaConfig if deberta else EncoderConfig
    rated, plain = (Encoder(make(**sizes, **rates), **options) for rates in (RATES, {}))
    return rated, plain


@pytest.mark.parametrize(
    ("kind", "places"), [("bert", (5, 2, 1)), ("roberta", (5, 2, 2)), ("deberta-v2", (8, 2, 1))]
)
def test_dropout_stands_where_the_pretrained_models_have_it(kind: str, places: tuple) -> None:
    """Embeddings, what attention and MLP of each layer add, DeBERTa's convolution and its relative
    positions in each layer; attention's weights; before the classifier, RoBERTa's pooler as well.
    """
    for rate, count in zip(RATES, places, strict=True):
        model, _ = with_rates(kind, scan=False)
        off = {name: 0.0 for name in RATES if name != rate}
        drawn = []

        def note(call: Any, args: Any, kwargs: Any, context: Any, drawn: list = drawn) -> Any:
            if isinstance(context.module, nn.Dropout) and context.module.rate:
                drawn.append(context.module.path)
            return call(*args, **kwargs)

        with nn.intercept_methods(note):
            keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
            one = model.clone(config=dataclasses.replace(model.config, **off))
            jax.eval_shape(one.init, keys, TOKENS, TOKENS > 0)
        assert len(drawn) == count, (rate, drawn)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_dropout_is_off_without_a_key_and_fixed_by_it(kind: str) -> None:
    rated, plain = with_rates(kind, remat=True)
    params = jax.jit(plain.init)(jax.random.key(0), TOKENS, TOKENS > 0)
    run = lambda model, key=None: np.asarray(
        jax.jit(model.apply)(
            params, TOKENS, TOKENS > 0, rngs=None if key is None else {"dropout": key}
        )
    )
    first, second = jax.random.split(jax.random.key(0))
    # A rate of 0 and no key are today's function, bit for bit.
    assert np.array_equal(run(rated), run(plain)) and np.array_equal(run(plain, first), run(plain))
    assert np.array_equal(run(rated, first), run(rated, first))
    assert not np.allclose(run(rated, first), run(rated, second))


def test_dropout_keeps_its_input_in_the_mean() -> None:
    """Logits are linear in what is dropped before the classifier."""
    rated, plain = with_rates("bert")
    params = jax.jit(plain.init)(jax.random.key(0), TOKENS, TOKENS > 0)
    only = dataclasses.replace(rated.config, dropout=0.0, attention_dropout=0.0)
    model, keys = rated.clone(config=only), jax.random.split(jax.random.key(0), 2000)
    draw = lambda key: model.apply(params, TOKENS, TOKENS > 0, rngs={"dropout": key})
    drawn = jax.jit(jax.vmap(draw))(keys)
    error = np.abs(drawn.mean(0) - plain.apply(params, TOKENS, TOKENS > 0))
    assert (error < 5 * np.asarray(drawn).std(0) / np.sqrt(2000)).all() and drawn.std(0).min() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "hidden_size 8 must be a multiple of num_heads 3"),
        ({"activation": "silu"}, "Unknown activation 'silu': known are gelu"),
    ],
)
def test_a_wrong_configuration_is_an_error(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**{**TINY, **change})


def test_gelu_is_that_of_flax_and_so_is_its_gradient() -> None:
    x, g = jnp.linspace(-6, 6, 1001), jnp.cos(jnp.arange(1001.0))
    for name, exact in (("gelu", True), ("gelu_new", False)):
        plain = lambda x: nn.gelu(x, approximate=not exact)  # noqa: B023
        for ours, theirs in zip(
            _with_gradient(ACTIVATIONS[name], x, g), _with_gradient(plain, x, g), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def _with_gradient(f: Any, x: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
    y, pull = jax.vjp(f, x)
    return y, *pull(g)


def temporaries(layers: int) -> int:
    """Of a step of an unrolled encoder in nf4."""
    sizes = dict(
        vocab_size=64,
        hidden_size=64,
        num_layers=layers,
        num_heads=4,
        intermediate_size=512,
        max_positions=64,
    )
    model, tokens, mask = (
        Encoder(EncoderConfig(**sizes), scan=False),
        jax.ShapeDtypeStruct((8, 64), jnp.int32),
        jnp.ones((8, 64), bool),
    )
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, mask)["params"]
    rules, quant = [("layers_.*kernel", LoraSpec(rank=2))], [("layers_.*kernel", QuantSpec("nf4"))]
    frozen, trainable = jax.eval_shape(
        lambda params: adapt(
            model, params, (tokens, mask), lora=rules, quant=quant, key=jax.random.key(0)
        ),
        params,
    )
    trained, fixed = partition(trainable)
    loss = lambda trained, frozen, fixed, tokens: (
        apply(model, frozen, combine(trained, fixed), tokens, mask)[0] ** 2
    ).sum()
    return (
        jax.jit(jax.grad(loss))
        .lower(trained, frozen, fixed, tokens)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


def test_an_unrolled_layer_keeps_what_goes_into_gelu_and_what_comes_out() -> None:
    growth = (
        (temporaries(8) - temporaries(4)) / 4 / (4 * 8 * 64)
    )  # numbers for each layer and token
    # Measured 2,842: these two, and what attention, sums and norms keep. Pieces of GELU's
    # derivative would be three more of the MLP's width.
    assert growth < 3000
