"""Optimisers of products: the papers' rules in NumPy, invariance to how a product is shared out, and
the same in stacks, under padding and after a restart.
"""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_task import PLAIN, batch, loss, make

from lora_jax import LoraSpec, create_state, make_optimizer, make_train_step
from lora_jax.adapters.stacking import pad, trim
from lora_jax.config import OptimConfig, from_config_dict
from lora_jax.core.lowrank import LowRank
from lora_jax.core.trainable import combine, partition
from lora_jax.training import optim
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.factor_optimizers import (
    DAMPING,
    on_product,
    scale_by_lora_muon,
    scale_by_rite,
)
from lora_jax.training.step import make_stacked_step

IN, OUT, RANK, SCALE, STEPS = 7, 5, 3, 2.0, 6
NAMES = ["riemannian", "lora_rite", "lora_muon"]
RNG = np.random.default_rng(0)
TARGET, CURVE = RNG.standard_normal((IN, OUT)), np.diag(1 + RNG.random(IN))
START = RNG.standard_normal((IN, RANK)), RNG.standard_normal((RANK, OUT))
NOISE = RNG.standard_normal((STEPS, IN, OUT))


def gradients(a: Any, b: Any, step: int) -> tuple[Any, Any]:
    """Of the factors, where the product `SCALE a b` is drawn to a target with noise."""
    g = CURVE @ (SCALE * a @ b - TARGET) + 0.3 * NOISE[step]
    return SCALE * g @ b.T, SCALE * a.T @ g


def products(tx: Any, a: Any, b: Any) -> list[Any]:
    """`a @ b` after each step, in float64."""
    with jax.enable_x64(True):
        low = LowRank(a=jnp.asarray(a), b=jnp.asarray(b), scale=jnp.full(RANK, SCALE))
        trained, fixed = partition({"w": low})
        state, update, found = tx.init(trained), jax.jit(tx.update), []
        for step in range(STEPS):
            ga, gb = gradients(np.asarray(trained["w"].a), np.asarray(trained["w"].b), step)
            grads = {"w": trained["w"].replace(a=jnp.asarray(ga), b=jnp.asarray(gb))}
            updates, state = update(grads, state, trained, fixed=fixed)
            trained = optax.apply_updates(trained, updates)
            found.append(np.asarray(trained["w"].a) @ np.asarray(trained["w"].b))
        return found


CLIPPED = OptimConfig(
    learning_rate=0.02, weight_decay=0.1, clip_norm=1.0, lora_plus_ratio=2.0, schedule="cosine"
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("b", [START[1], 0 * START[1]], ids=["started", "zero"])
def test_the_products_way_does_not_depend_on_how_it_is_shared_out(
    name: str, b: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With clipping, decay, warm-up and two rates; to 1e-6 of the product's size."""
    tx = make_optimizer(replace(CLIPPED, factors=name), STEPS)
    plain = products(tx, START[0], b)
    for c in (1e-3, 40.0):
        np.testing.assert_allclose(products(tx, c * START[0], b / c), plain, rtol=0, atol=1e-6)
    moved = np.abs(plain[-1] - START[0] @ b).max()
    assert moved > 0.02  # There is a way.
    if name != "riemannian":  # Adam looks at entries, so that a rotation is seen.
        mixed = np.linalg.qr(RNG.standard_normal((RANK, RANK)))[0] @ np.diag([1.0, 2.0, 0.5])
        # Damping is of the largest squared size, which mixing changes.
        monkeypatch.setattr(optim, "on_product", partial(on_product, damping=1e-6))
        tx = make_optimizer(replace(CLIPPED, factors=name), STEPS)
        plain = products(tx, START[0], b)
        other = products(tx, START[0] @ mixed, np.linalg.inv(mixed) @ b)
        np.testing.assert_allclose(other, plain, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("name", "most"), [("riemannian", 10.0), ("lora_muon", 2.0)])
def test_the_first_steps_from_zero_are_no_leap(name: str, most: float) -> None:
    """In rates, in the spectral norm: with a damping of 1e-6 the next steps were 149 and 52."""
    config = OptimConfig(learning_rate=0.01, clip_norm=1.0, schedule="constant", factors=name)
    found = products(make_optimizer(config, STEPS), START[0], 0 * START[1])
    moves = np.diff([0 * found[0], *found], axis=0)
    assert 0.1 < np.linalg.norm(SCALE * moves, 2, axis=(1, 2)).max() / 0.01 < most


def test_adams_way_does_depend_on_it() -> None:
    tx = make_optimizer(CLIPPED, STEPS)
    plain, other = products(tx, *START), products(tx, 40 * START[0], START[1] / 40)
    assert np.abs(plain[-1] - other[-1]).max() > 1e-2


def scaled_gradient_descent(a: Any, b: Any) -> Any:
    """Zhang and Pilanci, algorithm 1; alpha's scale is part of `a`, so steps are divided by its
    square.
    """
    for step in range(STEPS):
        ga, gb = gradients(a, b, step)
        a, b = (
            a - 0.1 / SCALE**2 * ga @ np.linalg.inv(b @ b.T),
            b - 0.1 / SCALE**2 * np.linalg.inv(a.T @ a) @ gb,
        )
        yield a @ b


def rite(a: Any, b: Any) -> Any:
    """Yen et al., algorithm 1, in the bases of QR; x and y (n, r) with the product x y^T."""
    x, y = SCALE * a, b.T
    memory: list[Any] = [
        dict(v=0 * np.eye(RANK), m=0 * z, u=0 * w, e=0.0) for z, w in ((x, y), (y, x))
    ]
    for t in range(1, STEPS + 1):
        ga, gb = gradients(x / SCALE, y.T, t - 1)
        new = []
        for z, other, g, old in ((x, y, ga / SCALE, memory[0]), (y, x, gb.T, memory[1])):
            u, r = np.linalg.qr(other)
            g, p = g @ np.linalg.pinv(r), u.T @ old["u"]
            moved = p @ old["v"] @ p.T
            lost = max(0, (np.linalg.eigvalsh(old["v"]) - np.linalg.eigvalsh(moved)).max())
            d1, d2 = (d * (1 - d ** (t - 1)) / (1 - d**t) for d in (0.9, 0.99))
            old["v"] = d2 * moved + (1 - d2) * g.T @ g / len(g)
            old["e"] = d2 * (old["e"] + lost)
            values, columns = np.linalg.eigh(old["v"])
            s = g @ columns @ np.diag(1 / np.sqrt(values + old["e"])) @ columns.T
            old["m"], old["u"] = d1 * old["m"] @ p.T + (1 - d1) * s, u
            new.append(z - 0.05 * old["m"] @ np.linalg.pinv(r).T)
        x, y = new
        yield x @ y.T / SCALE


def muon(a: Any, b: Any) -> Any:
    """Cesista et al.: momentum of the factors, whitened by the other's Gram matrix, and its sign."""
    root = lambda s: np.linalg.inv(np.linalg.cholesky(s)).T  # s^-1 = root root^T
    x, y, mx, my = SCALE * a, b.T, 0, 0
    for step in range(STEPS):
        ga, gb = gradients(x / SCALE, y.T, step)
        mx, my = 0.9 * mx + 0.1 * ga / SCALE, 0.9 * my + 0.1 * gb.T
        moves = []
        for m, other in ((mx, y), (my, x)):
            white = root(other.T @ other)
            left, _, right = np.linalg.svd(m @ white, full_matrices=False)
            moves.append(0.05 / 2 * left @ right @ white.T)
        x, y = x - moves[0], y - moves[1]
        yield x @ y.T / SCALE


@pytest.mark.parametrize(
    ("inner", "rate", "rule"),
    [
        (optax.identity(), 0.1, scaled_gradient_descent),
        (scale_by_rite(0.9, 0.99, 1e-12), 0.05, rite),
        (scale_by_lora_muon(0.9), 0.05, muon),
    ],
    ids=NAMES,
)
def test_the_steps_are_those_of_the_papers(inner: Any, rate: float, rule: Any) -> None:
    tx = optax.chain(on_product(inner, damping=0.0), optax.scale(-rate))
    expected = list(rule(*START))
    # Muon's sign is damped as a frame is: 1e-6 of the square of the largest direction.
    np.testing.assert_allclose(products(tx, *START), expected, rtol=0, atol=1e-4)
    if rule is not muon:
        np.testing.assert_allclose(products(tx, *START), expected, rtol=0, atol=1e-7)
    assert np.abs(expected[-1] - START[0] @ START[1]).max() > 0.05


def state_and_step(name: str, spec: LoraSpec | None = None) -> tuple[Any, Any, Any]:
    frozen, trainable = make(spec or LoraSpec(rank=2, alpha=4.0))
    tx = make_optimizer(replace(PLAIN, factors=name, clip_norm=1.0), 10)
    return frozen, trainable, (tx, make_train_step(loss, tx))


def close(one: Any, two: Any) -> None:
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5)  # float32 in another order


@pytest.mark.parametrize("name", NAMES)
def test_side_by_side_padded_and_restored_it_is_the_run_alone(name: str, tmp_path: Any) -> None:
    frozen, narrow, (tx, step) = state_and_step(name)
    _, wide, _ = state_and_step(name, LoraSpec(rank=4, alpha=4.0))
    alone, steps = create_state(narrow, tx, jax.random.key(0)), jax.jit(step)
    padded = create_state(pad(narrow, wide), tx, jax.random.key(0))
    both = jax.tree.map(lambda *x: jnp.stack(x), padded, create_state(wide, tx, jax.random.key(1)))
    together = jax.jit(make_stacked_step(step, 2, 2))
    for seed in range(3):
        alone, _ = steps(alone, frozen, batch(seed=seed))
        both, _ = together(both, frozen, batch(seed=seed), {})
    beside = jax.tree.map(lambda x: x[0], both)
    close(trim(beside.trainable), alone.trainable)
    assert not np.any(beside.trainable["up/kernel"].a[:, 2:])

    # A checkpoint has no padding: what was padded goes on alone.
    saving = Checkpoints(tmp_path, base="b", run="r")
    saving.save(beside, {})
    again, _ = saving.restore(create_state(narrow, tx, jax.random.key(0)))
    saving.close()
    close((again.trainable, again.opt_state), (alone.trainable, alone.opt_state))
    on = (steps(state, frozen, batch(seed=9))[0].trainable for state in (again, alone))
    close(*on)


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_a_stack_are_layers_alone_and_one_that_is_left_out_stays(name: str) -> None:
    tx = make_optimizer(replace(PLAIN, factors=name), 10)
    a, b, ga, gb = (
        jax.random.normal(jax.random.key(n), (3, *shape))
        for n, shape in enumerate(((IN, RANK), (RANK, OUT)) * 2)
    )
    scale = jnp.full((3, RANK), 2.0).at[1].set(0)  # of experts or layers; the second is left out
    on = (scale != 0)[..., None]

    def stepped(*arrays: Any) -> Any:
        a, b, ga, gb, scale = arrays
        trained, fixed = partition({"w": LowRank(a=a, b=b, scale=scale)})
        grads = {"w": trained["w"].replace(a=ga, b=gb)}
        state = tx.init(trained)
        for _ in range(2):
            updates, state = tx.update(grads, state, trained, fixed=fixed)
            trained = optax.apply_updates(trained, updates)
        return trained["w"].a, trained["w"].b

    used = jnp.swapaxes(on, -1, -2)
    arrays = (a * used, b * on, ga * used, gb * on, scale)
    stack = jax.jit(stepped)(*arrays)
    apart = [jax.jit(stepped)(*(x[n] for x in arrays)) for n in range(3)]
    close(stack, jax.tree.map(lambda *x: jnp.stack(x), *apart))
    assert not np.any(stack[0][1]) and np.all(np.isfinite(stack[0]))
    assert np.abs(stack[0] - arrays[0])[::2].min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_pair_has_adam_and_a_fixed_factor_still_divides(name: str) -> None:
    frozen, trainable, (tx, _) = state_and_step(name, LoraSpec(rank=2, dora=True))
    trained, fixed = partition(trainable)
    adam = make_optimizer(replace(PLAIN, factors="adam", clip_norm=0.0), 10)
    tx = make_optimizer(replace(PLAIN, factors=name, clip_norm=0.0), 10)
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), trained)
    ours, plain = (
        one.update(grads, one.init(trained), trained, fixed=fixed)[0] for one in (tx, adam)
    )
    for path in ("head/kernel", "head/bias"):
        np.testing.assert_allclose(ours[path].value, plain[path].value, rtol=1e-6)
    np.testing.assert_allclose(ours["up/kernel"].magnitude, plain["up/kernel"].magnitude, rtol=1e-6)
    assert np.abs(ours["up/kernel"].b - plain["up/kernel"].b).max() > 1e-4

    a, b = jnp.float32(START[0]), jnp.zeros((RANK, OUT))
    trained, fixed = partition({"w": LowRank(a=a, b=b, scale=jnp.ones(RANK), fixed=("a",))})
    grads = {"w": trained["w"].replace(b=jnp.ones((RANK, OUT)))}
    once, state = tx.update(grads, tx.init(trained), trained, fixed=fixed)
    twice, _ = tx.update(grads, state, trained, fixed=fixed)
    assert once["w"].a is None
    for step in (once, twice):  # All columns have one gradient, and `a` stays: one direction.
        gram = START[0].T @ START[0]
        gram += DAMPING * np.linalg.norm(gram, 2) * np.eye(RANK)
        solved = np.linalg.inv(gram) @ np.ones((RANK, OUT))
        if name != "riemannian":  # Adam's entries are of one size before the last division.
            np.testing.assert_allclose(
                -step["w"].b / np.linalg.norm(step["w"].b),
                solved / np.linalg.norm(solved),
                rtol=1e-3,
            )
        assert np.all(np.isfinite(step["w"].b))


def test_the_state_is_two_of_the_factors_at_most_and_their_small_squares() -> None:
    _, trainable, _ = state_and_step("adam")
    trained, _ = partition(trainable)
    numbers = lambda tree: sum(x.size for x in jax.tree.leaves(tree) if jnp.ndim(x))
    factors = numbers({p: leaf for p, leaf in trained.items() if isinstance(leaf, LowRank)})
    rest = numbers(trained) - factors
    squares = 2 * 2 * 2**2  # two sites, two factors, rank 2
    for name, wanted in (
        ("riemannian", 2 * factors),
        ("lora_rite", 2 * factors + squares),
        ("lora_muon", factors),
    ):
        state = make_optimizer(replace(PLAIN, factors=name), 10).init(trained)
        assert numbers(state) == wanted + 2 * rest, name


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (dict(lora=dict(variant="vera")), "lora.variant 'vera'"),
        (
            dict(lora=dict(variant="adalora"), optim=dict(adalora=dict(target_rank=2.0))),
            "lora.variant 'adalora'",
        ),
        (dict(lora=dict(parts=[True, False])), "config.lora.parts"),
        (dict(lora=dict(variant="lora_fa"), optim=dict(precondition_b=True)), "a second time"),
        (dict(optim=dict(name="adamw8bit")), "'adamw8bit' is of Adam's own moments"),
    ],
)
def test_where_there_are_no_pairs_it_is_refused(groups: Any, says: str) -> None:
    optim = dict(factors="lora_rite") | groups.pop("optim", {})
    with pytest.raises(ValueError, match=f"factors 'lora_rite' .*{re.escape(says)}"):
        from_config_dict(dict(optim=optim, **groups))
    # A baseline has no factors and does not read the setting.
    from_config_dict(dict(method="full", optim=optim | dict(name="adamw", precondition_b=False)))


def test_parts_of_a_fused_kernel_are_refused_by_the_optimiser_itself() -> None:
    low = LowRank(a=jnp.ones((4, 2)), b=jnp.ones((2, 6)), scale=jnp.ones(2), parts=jnp.eye(2))
    trained, fixed = partition({"w": low})
    with pytest.raises(ValueError, match="'w' has factors for the parts of a fused kernel"):
        on_product(optax.identity()).update(trained, optax.EmptyState(), trained, fixed=fixed)
    assert combine(trained, fixed)["w"].rank == 2
