"""Weights that are quantised with rotated inputs are read as if they were not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import lora_jax
from lora_jax.core.calibrate import awq, gptq
from lora_jax.core.hadamard import rotated, rotated_back, rotated_inputs, rotated_moment
from lora_jax.core.lowrank import LowRank
from lora_jax.core.quantize import QuantSpec, quantize
from lora_jax.core.quantize_columns import quantize_by_columns
from lora_jax.kernels.matmul import frozen_matmul

SPEC = QuantSpec("int4", 16, double=False, rotation="hadamard")
PLAIN = QuantSpec("int4", 16, double=False)


def outliers(rows: int = 96, out: int = 8) -> np.ndarray:
    """Normal weights, some of which are thirty times as large."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((rows, out))
    return np.where(rng.random(w.shape) < 0.02, 30 * w, w).astype(np.float32)


@pytest.mark.parametrize("rows", [6, 64, 96])
def test_the_rotation_is_hadamards_with_signs_in_blocks_of_a_power_of_two(rows):
    """Against Sylvester's construction in float64."""
    block = rows & -rows
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.kron(np.array([[1, 1], [1, -1]]), h)
    found = np.float64(rotated(jnp.eye(rows)))
    signs = np.sign(found[::block].sum(0))  # The first row of a Hadamard matrix is all ones.
    wanted = np.kron(np.eye(rows // block), h) / np.sqrt(block) * signs
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert rows < 10 or 0.2 < (signs > 0).mean() < 0.8
    w = jnp.asarray(outliers(rows))
    np.testing.assert_allclose(rotated_back(rotated(w)), w, atol=2e-5)
    np.testing.assert_allclose(rotated_inputs(w.T), (found @ w).T, atol=2e-5)
    np.testing.assert_allclose(rotated_inputs(rotated_inputs(w.T), back=True), w.T, atol=2e-5)
    np.testing.assert_allclose(rotated_moment(w @ w.T), found @ (w @ w.T) @ found.T, atol=2e-3)


def test_outliers_cost_less_and_what_is_read_is_rotated_back():
    w = jnp.stack([outliers(), outliers()[::-1]])
    q, plain = quantize(w, SPEC), quantize(w, PLAIN)
    lost = lambda q: float(jnp.linalg.norm(q.matrix() - w))
    assert lost(q) < 0.7 * lost(plain)
    np.testing.assert_allclose(q.unbox(), rotated_back(q.unrotated().matrix()), atol=1e-5)
    # Orthogonal: as much is lost as in the basis of the codes.
    inside = float(jnp.linalg.norm(q.unrotated().matrix() - rotated(w)))
    assert lost(q) == pytest.approx(inside, rel=1e-5)
    assert "hadamard" in repr(q)
    parts = quantize_by_columns(np.asarray(w[0]), SPEC, at_once=4 * 96)
    np.testing.assert_array_equal(parts.codes, q.codes[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_and_their_gradients_are_those_with_the_dense_weight(dtype):
    q = quantize(jnp.asarray(outliers()), SPEC)
    x = jax.random.normal(jax.random.key(0), (5, 96)).astype(dtype)
    here, back = jax.vjp(lambda x: frozen_matmul(x, q), x)
    there, dense = jax.vjp(lambda x: x @ q.unbox().astype(dtype), x)
    tolerance = {"float32": 2e-6, "bfloat16": 2e-2}[dtype]
    for one, other in ((here, there), (back(here)[0], dense(here)[0])):
        assert one.dtype == other.dtype
        off = jnp.linalg.norm((one - other).astype(jnp.float32))
        assert off < tolerance * jnp.linalg.norm(other.astype(jnp.float32))


class Block(nn.Module):
    """One layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """The output, and nothing besides."""
        return nn.tanh(nn.Dense(16, name="dense")(x)), None


class Layers(nn.Module):
    """Two layers in a scan, and an embedding."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """The output of the last layer."""
        x = nn.Embed(12, 16, name="words")(ids)
        layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return layers(name="layers")(x)[0]


def test_adapted_and_merged_models_are_those_of_the_weights_as_they_are_read():
    model, ids = Layers(), jnp.arange(6)
    params = model.init(jax.random.key(0), ids)["params"]
    adapted = lambda target: lora_jax.adapt(
        model,
        params,
        (ids,),
        lora=[("layers/dense/kernel", lora_jax.LoraSpec(rank=2, init="gaussian"))],
        quant=[(target, SPEC)],
        key=jax.random.key(1),
    )
    frozen, trainable = adapted("layers/dense/kernel")
    trainable = jax.tree.map(lambda x: x + 0.1, trainable)
    ours = lora_jax.apply(model, frozen, trainable, ids)
    joined = model.apply({"params": lora_jax.join(frozen, trainable)}, ids)
    merged = model.apply({"params": lora_jax.merge(frozen, trainable)[0]}, ids)
    np.testing.assert_allclose(ours, joined, atol=2e-5)
    np.testing.assert_allclose(merged, joined, atol=2e-5)
    with pytest.raises(ValueError, match="those of an embedding are words"):
        adapted("words/embedding|layers/dense/kernel")


def test_merge_aware_codes_are_the_same_operation_by_operation_and_compiled():
    base = quantize(jnp.asarray(outliers(24)), QuantSpec("nf4", 8, False, rotation="hadamard"))
    a, b = jax.random.normal(jax.random.key(1), (2, 24, 8))
    low = LowRank(a=a[:, :3], b=b[:3], scale=jnp.ones(3), rounded="kept")
    merged = low.onto_rounded(base).merged()
    compiled = jax.jit(lambda low, base: low.onto_rounded(base).merged())(low, base)
    np.testing.assert_array_equal(compiled.codes, merged.codes)
    still = low.replace(b=0 * low.b).onto_rounded(base).merged()
    np.testing.assert_array_equal(still.codes, base.codes)


def test_error_feedback_knows_the_rotated_inputs_and_what_weighs_inputs_is_refused():
    w = jnp.asarray(outliers(64))
    x = np.random.default_rng(1).normal(size=(200, 64)) * np.geomspace(0.1, 3, 64)
    moment = jnp.asarray(x.T @ x / 200, jnp.float32)
    lost = lambda q: np.linalg.norm(x @ np.float64(q.matrix() - w))
    assert lost(gptq(w, moment, SPEC)) < 0.9 * lost(quantize(w, SPEC))
    with pytest.raises(ValueError, match="rotation 'hadamard' mixes them"):
        awq(w, moment, SPEC)
    with pytest.raises(ValueError, match="an even number of inputs"):
        quantize(jnp.ones((9, 4)), QuantSpec("int4", None, double=False, rotation="hadamard"))
