"""Every initialiser against its formula in float64 NumPy, and against PEFT where PEFT has it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.core.init import INITIALIZERS, initialize, initialize_with_base, initializer_named
from lora_jax.core.lowrank import LoraSpec, LowRank
from lora_jax.core.quantize import QuantSpec, quantize

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "variants.npz")
KEY = jax.random.key(0)
NF4 = QuantSpec("nf4", 16, False)


def weight(rows=32, out=24, seed=0):
    """A matrix whose singular values fall, as those of trained weights do."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(rows, rows)))
    v, _ = np.linalg.qr(rng.normal(size=(out, out)))
    n = min(rows, out)
    return jnp.asarray(u[:, :n] @ np.diag(3.0 * 0.8 ** np.arange(n)) @ v[:n], jnp.float32)


def start(name, w, spec, data=None):
    """What the initialiser of that name gives for one matrix."""
    return initializer_named(name).function(w, data, KEY, spec)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_factors_and_residual_add_up_to_the_weight(name):
    w, spec = weight(), LoraSpec(rank=4, alpha=12.0, init=name)
    data = {"inputs": w @ w.T, "gradient": w * 0.01, "format": NF4, "error": (w @ w.T, 0.5 * w)}
    a, b, residual = start(name, w, spec, data.get(INITIALIZERS[name].reads))
    assert a.shape == (32, 4) and b.shape == (4, 24)
    update = 3.0 * np.float64(a) @ np.float64(b)
    if INITIALIZERS[name].reads == "error":
        assert np.linalg.norm(0.5 * np.float64(w) - update) < 0.5 * np.linalg.norm(w)
    elif residual is None:
        np.testing.assert_allclose(
            update, 0, atol=1e-6
        )  # `orthogonal`: products of float32 rows, about 1e-7 each
    elif INITIALIZERS[name].reads == "format":
        error = np.linalg.norm(np.float64(w) - residual.matrix(jnp.float32) - update)
        assert error < np.linalg.norm(np.float64(w) - quantize(w, NF4).matrix(jnp.float32))
    else:
        np.testing.assert_allclose(residual + update, w, atol=2e-5)
        assert np.linalg.norm(update) > 1e-3


@pytest.mark.parametrize("alpha", [4.0, 12.0, -6.0])
def test_pissa_takes_the_largest_singular_triplets_whatever_the_scale(alpha):
    w, spec = weight(), LoraSpec(rank=4, alpha=alpha, init="pissa")
    u, s, vt = np.linalg.svd(np.float64(w))
    best = u[:, :4] * s[:4] @ vt[:4]
    a, b, _ = start("pissa", w, spec)
    np.testing.assert_allclose(
        spec.effective_scale * np.float64(a) @ np.float64(b), best, atol=2e-5
    )
    np.testing.assert_allclose(
        np.linalg.norm(a, axis=0), np.sqrt(s[:4] / abs(spec.effective_scale)), rtol=1e-5
    )
    near = start("pissa_niter_8", w, spec)
    # 8 subspace iterations damp the next singular value, 0.8 times the last kept one, by 0.8^17.
    np.testing.assert_allclose(
        spec.effective_scale * np.float64(near.a) @ np.float64(near.b), best, atol=1e-3
    )


def test_milora_takes_the_smallest_singular_triplets_out_of_the_base():
    """Against float64 NumPy; the residual is the best approximation of the rank that is left."""
    w, spec = weight(), LoraSpec(rank=4, alpha=6.0, init="milora")
    a, b, residual = start("milora", w, spec)
    u, s, vt = np.linalg.svd(np.float64(w), full_matrices=False)
    minor = (u[:, -4:] * s[-4:]) @ vt[-4:]
    np.testing.assert_allclose(
        spec.effective_scale * np.float64(a) @ np.float64(b), minor, atol=2e-5
    )
    np.testing.assert_allclose(residual, (u[:, :-4] * s[:-4]) @ vt[:-4], atol=2e-5)
    np.testing.assert_allclose(
        np.linalg.norm(a, axis=0), np.sqrt(s[-4:] / abs(spec.effective_scale)), rtol=1e-3
    )


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_pissa_and_olora_equal_peft(name):
    w = jnp.asarray(GOLDEN["W"].T)
    a, b, residual = start(name, w, LoraSpec(rank=3, alpha=6.0, init=name))
    # Singular and orthogonal vectors are free in sign: their absolute values and their product are
    # not.
    np.testing.assert_allclose(np.abs(a.T), np.abs(GOLDEN[f"{name}_A"]), atol=1e-5)
    np.testing.assert_allclose(np.abs(b.T), np.abs(GOLDEN[f"{name}_B"]), atol=1e-5)
    np.testing.assert_allclose((a @ b).T, GOLDEN[f"{name}_B"] @ GOLDEN[f"{name}_A"], atol=1e-5)
    np.testing.assert_allclose(residual.T, GOLDEN[f"{name}_residual"], atol=1e-5)


def test_lora_ga_equals_peft_up_to_signs():
    w = jnp.asarray(GOLDEN["W"].T)
    a, b, _ = start(
        "lora_ga",
        w,
        LoraSpec(rank=3, alpha=6.0, init="lora_ga"),
        jnp.asarray(GOLDEN["lora_ga_G"].T),
    )
    np.testing.assert_allclose(np.abs(a.T), np.abs(GOLDEN["lora_ga_A"]), atol=1e-4)
    np.testing.assert_allclose(np.abs(b.T), np.abs(GOLDEN["lora_ga_B"]), atol=1e-4)
    with pytest.raises(ValueError, match="2 \\* rank"):
        start("lora_ga", w, LoraSpec(rank=6, init="lora_ga"), jnp.asarray(GOLDEN["lora_ga_G"].T))


def test_orthogonal_factors_are_both_away_from_zero():
    a, b, _ = start("orthogonal", weight(), LoraSpec(rank=4, init="orthogonal"))
    assert np.abs(a).max() > 0.05 and np.abs(b).max() > 0.05
    assert np.linalg.norm(a @ b) < 1e-5 * np.linalg.norm(a) * np.linalg.norm(b)


def test_eva_spans_the_leading_right_singular_vectors_of_the_inputs():
    x = np.random.default_rng(0).normal(size=(50, 32)) * 0.8 ** np.arange(32)
    _, _, vt = np.linalg.svd(x)
    a, b, _ = start(
        "eva", weight(), LoraSpec(rank=4, init="eva"), jnp.asarray(x.T @ x, jnp.float32)
    )
    np.testing.assert_allclose(np.abs(np.float64(a).T @ vt[:4].T), np.eye(4), atol=1e-3)
    assert not np.any(b)


@pytest.mark.parametrize("name", ["corda", "corda_kpm"])
def test_corda_keeps_the_directions_that_matter_most_or_least_for_the_inputs(name):
    w, spec = weight(), LoraSpec(rank=4, alpha=12.0, init=name)
    x = np.random.default_rng(0).normal(size=(500, 32)) * np.linspace(0.5, 2, 32)
    moment = x.T @ x
    moment = moment / (np.trace(moment) / 32)
    damped = moment + 0.01 * np.eye(32)
    u, s, vt = np.linalg.svd(damped @ np.float64(w), full_matrices=False)
    chosen = slice(0, 4) if name == "corda" else slice(-4, None)
    wanted = np.linalg.inv(damped) @ (u[:, chosen] * s[chosen] @ vt[chosen])
    a, b, _ = start(name, w, spec, jnp.asarray(7.0 * x.T @ x, jnp.float32))
    np.testing.assert_allclose(
        3.0 * np.float64(a) @ np.float64(b), wanted, atol=2e-3 * np.abs(wanted).max() + 1e-5
    )
    np.testing.assert_allclose(np.linalg.norm(b, axis=1), np.sqrt(s[chosen] / 3.0), rtol=2e-2)


def test_lora_one_starts_along_the_best_approximation_of_the_negative_gradient():
    """Against float64 NumPy; its size is 1 / 128 in the leading direction, whatever the gradient's."""
    gradient, spec = 0.01 * weight(seed=3), LoraSpec(rank=4, alpha=12.0, init="lora_one")
    a, b, residual = start("lora_one", weight(), spec, gradient)
    u, s, vt = np.linalg.svd(-np.float64(gradient))
    wanted = u[:, :4] * (s[:4] / s[0] / 128) @ vt[:4]
    np.testing.assert_allclose(np.float64(a) @ np.float64(b), wanted, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1), rtol=1e-4)
    np.testing.assert_allclose(residual, weight() - 3.0 * wanted, atol=1e-6)


def test_cloq_and_eora_are_the_nearest_outputs_of_their_rank():
    """Against float64 NumPy: the closed form, no perturbation of it that is nearer, and LoftQ."""
    w, spec = weight(), LoraSpec(rank=4, alpha=12.0, init="cloq")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 32)) @ rng.normal(size=(32, 32)) * np.geomspace(0.03, 3, 32)
    q = np.float64(quantize(w, NF4).matrix(jnp.float32))
    data = (jnp.asarray(7.0 * x.T @ x, jnp.float32), jnp.asarray(q, jnp.float32))
    off = np.float64(w) - q

    def loss(a, b):
        return np.linalg.norm(x @ (off - 3.0 * np.float64(a) @ np.float64(b)))

    # The best approximation of rank 4 of X (W - Q) is within the columns of X, so it is attained.
    least = np.sqrt((np.linalg.svd(x @ off)[1][4:] ** 2).sum())
    a, b, _ = start("cloq", w, spec, data)
    np.testing.assert_allclose(loss(a, b), least, rtol=1e-4)
    u, s, vt = np.linalg.svd(off)
    assert least < 0.8 * loss(u[:, :4] * s[:4] / 3.0, vt[:4])  # LoftQ's, of the same codes
    for n in range(20):
        turn = np.random.default_rng(n).normal(size=(32, 4)) * 1e-3
        assert loss(a + turn * np.abs(a).max(), b) > loss(a, b)

    other = start("eora", w, spec, data)
    np.testing.assert_allclose(other.a @ other.b, a @ b, atol=2e-6)
    np.testing.assert_allclose(b @ b.T, np.eye(4) / 9, atol=1e-5)  # The singular values are in `a`.
    unit = x.T @ x / np.trace(x.T @ x) * 32
    np.testing.assert_allclose(other.a.T @ unit @ other.a, np.eye(4), atol=1e-3)


def test_cloq_of_full_rank_is_the_weight_and_few_inputs_do_no_harm():
    w, q = weight(), jnp.asarray(quantize(weight(), NF4).matrix(jnp.float32))
    x = np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32)
    spec = LoraSpec(rank=24, alpha=24.0, init="cloq")
    for seen in (x, x[:5]):  # Of five inputs the moment has no inverse.
        a, b, _ = start("cloq", w, spec, (jnp.asarray(seen.T @ seen), q))
        np.testing.assert_allclose(q + a @ b, w, atol=2e-4)
    twice = lambda one: jnp.stack([one, 2 * one])
    stack = (twice(jnp.asarray(x.T @ x)), twice(q))
    low = initialize(KEY, (2,), 32, 24, spec, weight=twice(w), data=stack)
    np.testing.assert_allclose(low.delta(), twice(w - q), atol=4e-4)


@pytest.mark.parametrize("alpha", [4.0, 32.0])
def test_loftq_has_the_scale_in_its_formula_and_never_raises_the_error(alpha):
    w = jnp.stack([weight(seed=1), weight(seed=2), jnp.zeros((32, 24))])
    spec = LoraSpec(rank=4, alpha=alpha, init="loftq")
    low, base = initialize_with_base(KEY, w, spec, NF4)
    plain = quantize(w, NF4)
    before = np.linalg.norm(np.float64(w) - plain.matrix(jnp.float32), axis=(1, 2))
    after = np.linalg.norm(
        np.float64(w) - base.matrix(jnp.float32) - np.float64(low.delta()), axis=(1, 2)
    )
    assert np.all(after[:2] < 0.9 * before[:2])
    # A matrix that quantises without error keeps its codes, b = 0 and an `a` that can learn.
    assert after[2] == 0 and not np.any(low.b[2]) and np.any(low.a[2])
    # One iteration: the codes are the plain ones, and the factors the best rank-4 approximation of
    # what they lose.
    np.testing.assert_array_equal(base.codes, plain.codes)
    u, s, vt = np.linalg.svd(np.float64(w[0]) - plain.matrix(jnp.float32)[0])
    np.testing.assert_allclose(low.delta()[0], u[:, :4] * s[:4] @ vt[:4], atol=1e-5)


def test_more_iterations_of_loftq_are_kept_only_where_they_help():
    from lora_jax.core.initializers.spectral import loftq

    # In so few bits, of so many directions, the error goes up and down from one to the next.
    w = jnp.stack([np.random.default_rng(s).normal(size=(32, 24)) for s in range(4)])
    coarse, spec = QuantSpec("int2", 16, False), LoraSpec(rank=2, alpha=4.0)
    error = lambda a, b, base: np.linalg.norm(
        np.float64(w) - base.matrix(jnp.float32) - 2 * np.float64(a) @ np.float64(b), axis=(1, 2)
    )
    errors = [error(*loftq(w, coarse, KEY, spec, iterations=n)) for n in (1, 3, 4, 5)]
    assert np.all(np.diff(errors, axis=0) <= 1e-6)


def test_qpissa_loses_less_than_quantising_the_whole_weight():
    w = weight()
    low, base = initialize_with_base(KEY, w, LoraSpec(rank=8, alpha=8.0, init="qpissa"), NF4)
    lost = np.linalg.norm(np.float64(w) - base.matrix(jnp.float32) - np.float64(low.delta()))
    assert lost < 0.5 * np.linalg.norm(np.float64(w) - quantize(w, NF4).matrix(jnp.float32))


def test_each_matrix_of_a_stack_is_initialised_by_itself():
    w = jnp.stack([weight(seed=1), weight(seed=2)])
    low = initialize(KEY, (2,), 32, 24, LoraSpec(rank=4, init="pissa"), weight=w)
    for n in range(2):
        alone = initialize(KEY, (), 32, 24, LoraSpec(rank=4, init="pissa"), weight=w[n])
        np.testing.assert_allclose(low.moving().delta()[n], alone.moving().delta(), atol=1e-5)
    assert low.a0 is not low.a and not np.any(low.delta())


def test_vera_computes_what_peft_computes():
    g = GOLDEN
    assert np.all(g["vera_start_d"] == np.float32(0.1))
    low = LowRank(
        a=jnp.asarray(g["vera_A"].T), b=jnp.asarray(g["vera_B"].T), scale=jnp.ones(3), gain=jnp.asarray(g["vera_start_d"]), out_gain=jnp.asarray(g["vera_b"])
    )  # fmt: skip
    np.testing.assert_allclose(
        g["x"] @ (g["W"].T + low.delta()) + g["bias"], g["vera_y"], rtol=1e-5, atol=1e-5
    )
    ours = initialize(KEY, (), 12, 10, LoraSpec(rank=3, variant="vera"))
    assert (
        np.all(ours.gain == np.float32(0.1))
        and not np.any(ours.out_gain)
        and np.all(ours.scale == 1)
    )
    # Kaiming bounds: 3000 entries come within a few per cent of them.
    wide = initialize(KEY, (), 100, 30, LoraSpec(rank=30, variant="vera"))
    np.testing.assert_allclose(
        [np.abs(wide.a).max(), np.abs(wide.b).max()], [np.sqrt(6 / 100), np.sqrt(6 / 30)], rtol=0.02
    )
