"""DoRA's norms and gradients: float64, PEFT's golden values, and what is never formed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.core.init import initialize, with_magnitude
from lora_jax.core.lowrank import Adapted, LoraSpec, LowRank
from lora_jax.core.quantize import QuantSpec, quantize

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "variants.npz")
SHAPE = (24, 20)
DORA = LoraSpec(rank=3, alpha=6.0, dora=True)


def factors(spec=DORA, seed=0, size=0.5):
    """Factors with noise, and a base."""
    w = jax.random.normal(jax.random.key(seed), SHAPE)
    low = initialize(jax.random.key(seed + 1), (), *SHAPE, spec, weight=w)
    key = jax.random.split(jax.random.key(seed + 2), 2)
    return w, low.replace(
        a=low.a + size * jax.random.normal(key[0], low.a.shape),
        b=low.b + size * jax.random.normal(key[1], low.b.shape),
    )


def dense(w, low):
    """Base plus update in float64."""
    update = (np.float64(low.a) * np.float64(low.scale)) @ np.float64(low.b)
    if low.a0 is not None:
        update = update - (np.float64(low.a0) * np.float64(low.scale)) @ np.float64(low.b0)
    return np.float64(w) + update


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("init", ["kaiming", "pissa"])
def test_column_norms_equal_those_of_the_dense_sum(init, cached):
    w, low = factors(LoraSpec(rank=3, alpha=6.0, init=init))
    low = low.replace(base_square=(w * w).sum(0) if cached else None)
    # Three float32 sums of up to 60 terms each, against float64.
    np.testing.assert_allclose(low.column_squares(w), np.square(dense(w, low)).sum(0), rtol=2e-5)


def test_nothing_of_the_weights_size_is_formed_beside_the_base():
    w, low = factors()
    low = low.replace(base_square=(w * w).sum(0))
    jaxpr = jax.make_jaxpr(lambda w, low: low.column_squares(w))(w, low)
    made = [
        var.aval.shape
        for equation in jaxpr.jaxpr.eqns
        for var in equation.outvars
        if equation.primitive.name != "convert_element_type"
    ]
    assert made and SHAPE not in made and SHAPE[::-1] not in made


def test_the_box_is_the_definition_and_its_gradient_that_with_the_norm_held_constant():
    w, low = factors()
    low = with_magnitude(low, w).replace(magnitude=jnp.linspace(0.5, 2.0, SHAPE[1]))
    norm = np.sqrt(np.square(dense(w, low)).sum(0))
    np.testing.assert_allclose(
        Adapted(base=w, lora=low).unbox(),
        dense(w, low) * np.float64(low.magnitude) / norm,
        rtol=1e-5,
        atol=1e-5,
    )
    target = jax.random.normal(jax.random.key(8), SHAPE)

    def ours(low):
        return (Adapted(base=w, lora=low).unbox() * target).sum()

    def definition(low):
        v = w + (low.a * low.scale) @ low.b
        return (
            low.magnitude * v / jax.lax.stop_gradient(jnp.linalg.norm(v, axis=0)) * target
        ).sum()

    for name in ("a", "b", "magnitude"):
        left, right = getattr(jax.grad(ours)(low), name), getattr(jax.grad(definition)(low), name)
        np.testing.assert_allclose(left, right, rtol=2e-5, atol=2e-5)


def test_start_is_the_base_bit_for_bit_on_a_quantised_weight_too():
    w = jax.random.normal(jax.random.key(0), SHAPE)
    stored = quantize(w, QuantSpec("nf4", 8, False))
    low = with_magnitude(
        initialize(jax.random.key(1), (), *SHAPE, LoraSpec(rank=3)), stored.matrix()
    )
    np.testing.assert_array_equal(Adapted(base=stored, lora=low).unbox(), stored.unbox())
    np.testing.assert_array_equal(
        Adapted(base=stored, lora=low.replace(base_square=None)).unbox(), stored.unbox()
    )


def test_columns_without_direction_and_padded_layers_are_left_alone():
    w, low = factors()
    w, low = w.at[:, 2].set(0.0), low.replace(b=low.b.at[:, 2].set(0.0))
    low = with_magnitude(low, w).replace(magnitude=jnp.full(SHAPE[1], 3.0))
    found = low.column_factors(w)
    assert found[2] == 1 and np.all(np.isfinite(found)) and abs(float(found[0]) - 1) > 0.01
    np.testing.assert_array_equal(
        low.replace(scale=jnp.zeros(3)).column_factors(w), np.ones(SHAPE[1])
    )


def test_peft_agrees_on_output_gradients_and_merged_weight():
    g = GOLDEN
    w = jnp.asarray(g["W"].T)
    start = with_magnitude(
        LowRank(a=jnp.asarray(g["dora_A"].T), b=jnp.zeros((3, 10)), scale=jnp.full(3, 2.0)), w
    )
    np.testing.assert_allclose(start.magnitude, g["dora_start_m"], rtol=1e-6)
    low = start.replace(b=jnp.asarray(g["dora_B"].T), magnitude=jnp.asarray(g["dora_m"]))

    def output(low):
        return g["x"] @ Adapted(base=w, lora=low).unbox() + g["bias"]

    np.testing.assert_allclose(output(low), g["dora_y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        Adapted(base=w, lora=low).unbox().T, g["dora_merged"], rtol=1e-5, atol=1e-5
    )
    grads = jax.grad(lambda low: (output(low) * g["g"]).sum())(low)
    np.testing.assert_allclose(grads.a.T, g["dora_grad_A"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads.b.T, g["dora_grad_B"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads.magnitude, g["dora_grad_m"], rtol=1e-4, atol=1e-4)


def test_bfloat16_products_keep_small_changes_of_the_magnitude():
    from lora_jax.adapters.products import rescaled

    y, moved = jnp.full((4, 8), 255.0, jnp.bfloat16), jnp.full(8, 1.003)
    assert float((y * moved.astype(jnp.bfloat16))[0, 0]) == 255.0  # 1.003 is 1 in bfloat16
    assert float(rescaled(y, moved)[0, 0]) == 256.0
