"""AdaLoRA's budget and LoRA-FA's scaling: PEFT's golden values, definitions, and a training run."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lora_jax.config import AdaLoraConfig, OptimConfig
from lora_jax.core.init import initialize
from lora_jax.core.lowrank import LoraSpec, LowRank
from lora_jax.core.trainable import combine, partition
from lora_jax.training.optim import make_optimizer
from lora_jax.training.variants import adalora, precondition_b, prune

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "variants.npz")
PEFT = AdaLoraConfig(
    target_rank=2,
    warmup_steps=2,
    final_steps=3,
    interval=2,
    beta1=0.85,
    beta2=0.85,
    orthogonality=0.0,
)


def golden_tree(step, suffix=""):
    """Trained factors of PEFT's two layers at a step, or their gradients."""
    part = lambda site, name: jnp.asarray(GOLDEN[f"adalora_{step}_{site}.lora_{name}{suffix}"])
    return {
        s: LowRank(a=part(s, "A").T, b=part(s, "B").T, gain=part(s, "E")[:, 0], scale=None)
        for s in ("0", "1")
    }


def test_adalora_masks_the_triplets_that_peft_masks_at_every_step():
    tx = adalora(optax.identity(), PEFT, 12)
    fixed = {site: LowRank(a=None, b=None, scale=jnp.ones(4)) for site in ("0", "1")}
    state, masked_at = tx.init(golden_tree(1)), []
    update = jax.jit(tx.update)
    for step in range(1, 13):
        params, grads = golden_tree(step), golden_tree(step, "_grad")
        updates, state = update(grads, state, params, fixed=fixed)
        kept = {site: np.asarray(params[site].gain + updates[site].gain != 0) for site in params}
        for site in params:
            np.testing.assert_array_equal(
                kept[site],
                GOLDEN[f"adalora_{step}_{site}.lora_E_kept"][:, 0] > 0,
                err_msg=f"step {step}",
            )
        if not all(mask.all() for mask in kept.values()):
            assert sum(mask.sum() for mask in kept.values()) == GOLDEN[f"adalora_{step}_budget"]
            masked_at.append(step)
    assert masked_at == [4, 6, 8, 10, 11, 12]


def test_orthogonality_penalty_has_the_gradient_of_its_definition():
    low = initialize(jax.random.key(0), (2,), 8, 6, LoraSpec(rank=3, variant="adalora"))
    trained, fixed = partition({"w": low.replace(a=10 * low.a, b=10 * low.b)})

    def penalty(tree):
        a, b, eye = tree["w"].a, tree["w"].b, jnp.eye(3)
        return 0.1 * (
            jnp.square(jnp.swapaxes(a, -1, -2) @ a - eye).sum()
            + jnp.square(b @ jnp.swapaxes(b, -1, -2) - eye).sum()
        )

    tx = adalora(
        optax.identity(), AdaLoraConfig(target_rank=3.0, orthogonality=0.1, final_steps=0), 100
    )
    zero = jax.tree.map(jnp.zeros_like, trained)
    updates, _ = tx.update(zero, tx.init(trained), trained, fixed=fixed)
    wanted = jax.grad(penalty)(trained)
    np.testing.assert_allclose(updates["w"].a, wanted["w"].a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updates["w"].b, wanted["w"].b, rtol=1e-5, atol=1e-6)


def test_a_budget_is_spent_on_the_matrix_that_needs_rank_and_pruning_keeps_the_function():
    keys = jax.random.split(jax.random.key(0), 3)
    target = {
        "big": jax.random.normal(keys[0], (12, 4)) @ jax.random.normal(keys[1], (4, 10)),
        "none": jnp.zeros((12, 10)),
    }
    spec = LoraSpec(rank=4, alpha=4.0, variant="adalora")
    trainable = {
        name: initialize(key, (), 12, 10, spec) for name, key in zip(target, keys, strict=False)
    }
    config = OptimConfig(
        learning_rate=0.05,
        weight_decay=0.0,
        adalora=AdaLoraConfig(
            target_rank=2.0, warmup_steps=20, final_steps=40, interval=5, orthogonality=0.01
        ),
    )
    tx, (trained, fixed) = make_optimizer(config, 200), partition(trainable)

    def loss(tree):
        return sum(
            jnp.square(leaf.delta() - target[name]).mean()
            for name, leaf in combine(tree, fixed).items()
        )

    @jax.jit
    def step(trained, state):
        updates, state = tx.update(jax.grad(loss)(trained), state, trained, fixed=fixed)
        return optax.apply_updates(trained, updates), state

    state, first = tx.init(trained), float(loss(trained))
    for _ in range(200):
        trained, state = step(trained, state)
    gains = {name: int((leaf.gain != 0).sum()) for name, leaf in trained.items()}
    assert gains == {"big": 4, "none": 0}
    assert float(loss(trained)) < 0.2 * first
    whole = combine(trained, fixed)
    pruned = prune(whole)
    assert set(pruned) == {"big"} and pruned["big"].rank == 4
    np.testing.assert_allclose(pruned["big"].delta(), whole["big"].delta(), rtol=1e-6)


def test_lora_fa_scaling_follows_pefts_optimiser():
    a, grads = jnp.asarray(GOLDEN["fa_A"].T), GOLDEN["fa_grads"]
    low = LowRank(a=a, b=jnp.zeros((3, 10)), scale=jnp.full(3, 2.0), fixed=("a",))
    trained, fixed = partition({"w": low})
    tx = optax.chain(precondition_b(), optax.scale_by_adam(eps=1e-6), optax.scale(-0.01))
    state = tx.init(trained)
    assert not [leaf for leaf in jax.tree.leaves(state) if leaf.shape == a.shape]
    for grad in grads:
        updates, state = tx.update(
            {"w": trained["w"].replace(b=jnp.asarray(grad.T))}, state, trained, fixed=fixed
        )
        trained = optax.apply_updates(trained, updates)
    # PEFT rounds the projected gradient to bfloat16 where the processor has it: 2^-8 of each step
    # of 0.01.
    np.testing.assert_allclose(trained["w"].b.T, GOLDEN["fa_B"], atol=3e-4)
    gram = np.float64(a).T @ np.float64(a)
    once, _ = precondition_b().update(
        {"w": trained["w"].replace(b=jnp.asarray(grads[0].T))}, optax.EmptyState(), fixed=fixed
    )
    np.testing.assert_allclose(
        once["w"].b, np.linalg.solve(gram, np.float64(grads[0].T)) / 4, rtol=1e-4
    )


def test_padded_columns_do_not_disturb_the_scaling():
    low = initialize(jax.random.key(0), (2,), 8, 6, LoraSpec(rank=2, variant="lora_fa"))

    def scaled(low):
        trained, fixed = partition({"w": low})
        grad = jnp.zeros_like(low.b).at[:, :2].set(jax.random.normal(jax.random.key(1), (2, 2, 6)))
        return (
            precondition_b()
            .update({"w": trained["w"].replace(b=grad)}, optax.EmptyState(), fixed=fixed)[0]["w"]
            .b
        )

    np.testing.assert_allclose(scaled(low.with_rank(4))[:, :2], scaled(low), rtol=1e-5)
    assert not np.any(scaled(low.with_rank(4))[:, 2:])
