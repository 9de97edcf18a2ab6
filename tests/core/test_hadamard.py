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


def test_the_rotation_is_hadamards_with_signs_in_blocks_of_a_power_of_two():
    """Against Sylvester's construction in float64."""
    rows, block = 96, 32
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.kron(np.array([[1, 1], [1, -1]]), h)
    found = np.float64(rotated(jnp.eye(rows)))
    signs = np.sign(found[::block].sum(0))  # The first row of a Hadamard matrix is all ones.
    wanted = np.kron(np.eye(rows // block), h) / np.sqrt(block) * signs
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert 0.2 < (signs > 0).mean() < 0.8
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

    def both(product):
        y, back = jax.vjp(product, x)
        return y, back(jnp.ones_like(y))[0]

    here = jax.jit(lambda: both(lambda x: frozen_matmul(x, q)))()
    there = jax.jit(lambda: both(lambda x: x @ q.unbox().astype(dtype)))()
    tolerance = {"float32": 2e-6, "bfloat16": 2e-2}[dtype]
    for one, other in zip(here, there):
        assert one.dtype == other.dtype
        off = jnp.linalg.norm((one - other).astype(jnp.float32))
        assert off < tolerance * jnp.linalg.norm(other.astype(jnp.float32))


class Words(nn.Module):
    """A layer behind an embedding."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """The layer's output."""
        return nn.Dense(8, name="dense")(nn.Embed(12, 16, name="words")(ids))


def test_adapted_and_merged_models_are_those_of_the_weights_as_they_are_read():
    model, ids = Words(), jnp.arange(6)
    params = jax.jit(model.init)(jax.random.key(0), ids)["params"]

    def adapted(target):
        spec = lora_jax.LoraSpec(rank=2, init="gaussian")
        rules = dict(lora=[("dense/kernel", spec)], quant=[(target, SPEC)])
        return lora_jax.adapt(model, params, (ids,), key=jax.random.key(1), **rules)

    frozen, trainable = adapted("dense/kernel")
    trainable = jax.tree.map(lambda x: x + 0.1, trainable)
    ours = jax.jit(lambda: lora_jax.apply(model, frozen, trainable, ids))()
    join = lambda: model.apply({"params": lora_jax.join(frozen, trainable)}, ids)
    merged = lora_jax.merge(frozen, trainable)[0]
    np.testing.assert_allclose(ours, jax.jit(join)(), atol=2e-5)
    np.testing.assert_allclose(model.apply({"params": merged}, ids), ours, atol=2e-5)
    with pytest.raises(ValueError, match="those of an embedding are words"):
        jax.eval_shape(lambda: adapted("words/embedding|dense/kernel"))


def test_merge_aware_codes_are_the_same_in_every_program():
    base = quantize(jnp.asarray(outliers(24)), QuantSpec("nf4", 8, False, rotation="hadamard"))
    a, b = jax.random.normal(jax.random.key(1), (2, 24, 8))
    low = LowRank(a=a[:, :3], b=b[:3], scale=jnp.ones(3), rounded="kept")
    merged = lambda low: low.onto_rounded(base).merged()
    alone = jax.jit(merged)
    product = jax.jit(lambda low, x: (x @ merged(low).unbox(), merged(low).codes))
    np.testing.assert_array_equal(alone(low).codes, product(low, jnp.ones((2, 24)))[1])
    np.testing.assert_array_equal(alone(low.replace(b=0 * low.b)).codes, base.codes)


@pytest.mark.long
def test_error_feedback_knows_the_rotated_inputs():
    w = jnp.asarray(outliers(64))
    x = np.random.default_rng(1).normal(size=(200, 64)) * np.geomspace(0.1, 3, 64)
    moment = jnp.asarray(x.T @ x / 200, jnp.float32)
    lost = lambda q: np.linalg.norm(x @ np.float64(q.matrix() - w))
    assert lost(gptq(w, moment, SPEC)) < 0.9 * lost(quantize(w, SPEC))


def test_what_weighs_inputs_one_by_one_and_odd_inputs_are_refused():
    with pytest.raises(ValueError, match="rotation 'hadamard' mixes them"):
        awq(jnp.ones((64, 4)), jnp.eye(64), SPEC)
    with pytest.raises(ValueError, match="an even number of inputs"):
        quantize(jnp.ones((9, 4)), QuantSpec("int4", None, double=False, rotation="hadamard"))
