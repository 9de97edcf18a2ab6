"""The training step: what it changes and what it must not, one trace, accumulation, dropout keys,
Adam's invariance, and meshes.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from small_task import PLAIN, batch, loss, make
from user_models import error, same_bits

from lora_jax import LoraSpec, create_state, make_eval_step, make_optimizer, make_train_step
from lora_jax.core.trainable import partition
from lora_jax.training.compile import Program

TX = make_optimizer(PLAIN, 100)


def start(tx: Any = TX, **rest: Any) -> tuple[Any, Any]:
    frozen, trainable = make(**rest)
    return frozen, create_state(trainable, tx, jax.random.key(7))


def run(step: Any, state: Any, frozen: Any, batches: list[Any]) -> tuple[Any, list[float]]:
    step, losses = jax.jit(step), []
    for part in batches:
        state, metrics = step(state, frozen, part)
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize("quant", [False, True])
def test_a_step_changes_every_trained_leaf_and_nothing_else(quant: bool) -> None:
    frozen, state = start(quant=quant)
    before = jax.tree.map(np.array, frozen)
    # Two steps: `a` has no gradient while `b` is 0.
    new, losses = run(make_train_step(loss, TX), state, frozen, [batch(seed=0), batch(seed=1)])
    assert same_bits(jax.tree.map(np.asarray, frozen), before)
    (old_trained, old_fixed), (trained, fixed) = (
        partition(state.trainable),
        partition(new.trainable),
    )
    assert jax.tree.structure(trained) == jax.tree.structure(old_trained) and same_bits(
        fixed, old_fixed
    )
    assert all(
        np.all(np.asarray(x) != np.asarray(y))
        for x, y in zip(jax.tree.leaves(trained), jax.tree.leaves(old_trained), strict=True)
    )
    assert int(new.step) == 2 and same_bits(new.key, state.key) and losses[0] > 0


def test_gradients_are_taken_of_the_trained_tree_alone() -> None:
    frozen, state = start(quant=True)
    trained, _ = partition(state.trainable)
    seen: list[Any] = []

    def update(grads: Any, opt: Any, params: Any, **extra: Any) -> Any:
        seen.append(jax.tree.map(jnp.shape, grads))
        return TX.update(grads, opt, params, **extra)

    spy = TX._replace(update=update)
    jax.eval_shape(make_train_step(loss, spy), state, frozen, batch())
    assert seen == [jax.tree.map(jnp.shape, trained)]


def test_training_lowers_the_loss_and_evaluation_agrees() -> None:
    frozen, state = start()
    new, losses = run(make_train_step(loss, TX), state, frozen, [batch()] * 60)
    assert losses[-1] < 0.7 * losses[0]
    sums = jax.jit(make_eval_step(loss))(frozen, new.trainable, batch())
    after, _ = jax.jit(make_train_step(loss, TX))(new, frozen, batch())
    assert float(sums.loss / sums.weight) < losses[-1] and int(after.step) == 61


def test_one_trace_serves_a_hundred_steps() -> None:
    frozen, state = start()
    traces = []

    def counted(*args: Any) -> Any:
        traces.append(1)
        return loss(*args)

    program = Program(make_train_step(counted, TX), donate=(0,))
    state, _ = program(state, frozen, batch())
    first = len(traces)
    for seed in range(99):
        state, _ = program(state, frozen, batch(seed=seed))
    assert len(traces) == first and program.compilations == 1 and int(state.step) == 100
    program(state, frozen, batch(4))
    assert (
        program.compilations == 2
        and program.compile_seconds > 0
        and program.peak_bytes(state, frozen, batch()) > 0
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_one_large_batch_with_uneven_weights(parts: int) -> None:
    # The weights of the parts differ: the mean of the parts' means would be another number.
    weights = [1, 1, 1, 1, 1, 0, 0, 0]
    frozen, state = start()
    batches = [batch(seed=seed, weight=weights) for seed in range(3)]
    whole, losses = run(make_train_step(loss, TX), state, frozen, batches)
    split, split_losses = run(make_train_step(loss, TX, accumulate=parts), state, frozen, batches)
    assert split_losses == pytest.approx(losses, rel=1e-6)
    # Adam divides a gradient by itself, so that rounding (6e-8) of an entry near 0 is magnified in
    # the first steps.
    assert error(split.trainable, whole.trainable) < 1e-4


def test_weights_below_one_still_give_the_mean() -> None:
    frozen, state = start()
    full, _ = jax.jit(make_train_step(loss, TX))(state, frozen, batch())
    step = jax.jit(make_train_step(loss, TX))
    light = step(state, frozen, batch(weight=[0.05] * 8))[1]
    assert float(light["loss"]) == pytest.approx(
        float(step(state, frozen, batch())[1]["loss"]), rel=1e-5
    )
    nothing, metrics = step(state, frozen, batch(weight=[0.0] * 8))
    assert (
        float(metrics["loss"]) == 0
        and float(metrics["grad_norm"]) == 0
        and same_bits(nothing.trainable, state.trainable)
    )
    assert not same_bits(full.trainable, state.trainable)


def test_dropout_differs_between_steps_and_parts_and_repeats_with_the_state() -> None:
    frozen, state = start(spec=LoraSpec(2, alpha=400.0, dropout=0.5))
    state = run(make_train_step(loss, TX), state, frozen, [batch()])[0]  # so that b is not 0
    step = jax.jit(make_train_step(loss, TX))
    losses = [
        float(step(state.replace(step=jnp.int32(n)), frozen, batch())[1]["loss"])
        for n in (1, 2, 3, 1)
    ]
    assert len(set(losses[:3])) == 3 and losses[0] == losses[3]
    other = float(step(state.replace(key=jax.random.key(8)), frozen, batch())[1]["loss"])
    assert other not in losses

    # Evaluation is without dropout: the same sums as those of factors that have none.
    plain = {
        path: leaf.replace(dropout=0.0) if hasattr(leaf, "dropout") else leaf
        for path, leaf in state.trainable.items()
    }
    evaluated = jax.jit(make_eval_step(loss))(frozen, state.trainable, batch())
    assert float(evaluated.loss) == float(jax.jit(loss)(frozen, plain, batch(), None)[0])
    assert float(evaluated.loss) / 8 not in losses
    # Accumulation gives each part a key of its own: two equal halves with one mask would have the
    # loss of one half.
    halves = jax.tree.map(lambda x: np.concatenate([x, x]), batch(4))
    both = float(jax.jit(make_train_step(loss, TX, accumulate=2))(state, frozen, halves)[1]["loss"])
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), 2)
    parts = [float(jax.jit(loss)(frozen, state.trainable, batch(4), key)[0]) / 4 for key in keys]
    assert parts[0] != parts[1] and both == pytest.approx(sum(parts) / 2, rel=1e-5)


# Adam's steps do not depend on the gradient's size, so scaling `a` by p and `b` by q,
# with their rates, is undone by alpha / (p q). Needs eps near 0, no decay and no clipping.
@pytest.mark.parametrize(("p", "q", "tolerance"), [(4.0, 0.25, 1e-6), (3.0, 7.0, 1e-4)])
def test_adam_is_invariant_to_the_split_of_scale_between_factors_and_alpha(
    p: float, q: float, tolerance: float
) -> None:
    base = replace(PLAIN, eps=1e-30, head_learning_rate=1e-3)

    def losses(p: float, q: float) -> list[float]:
        tx = make_optimizer(replace(base, learning_rate=p * 1e-2, lora_plus_ratio=q / p), 50)
        frozen, trainable = make(LoraSpec(2, alpha=4.0 / (p * q)))
        trainable = {
            path: leaf.replace(a=leaf.a * p) if "up" in path or "down" in path else leaf
            for path, leaf in trainable.items()
        }
        state = create_state(trainable, tx, jax.random.key(0))
        return run(
            make_train_step(loss, tx), state, frozen, [batch(seed=n % 5) for n in range(50)]
        )[1]

    plain = losses(1.0, 1.0)
    assert plain[-1] < plain[0] and losses(p, q) == pytest.approx(plain, rel=tolerance)
    # Powers of two are exact in float32; 3 and 7 round every factor, and 50 steps add that up.


@pytest.mark.parametrize("quant", [False, True])
def test_two_devices_with_a_sharded_base_train_as_one(quant: bool) -> None:
    assert jax.device_count() >= 2
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("x",))
    place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    frozen, state = start(quant=quant)
    step = make_train_step(loss, TX)
    batches = [batch(seed=seed) for seed in range(5)]
    one, losses = run(step, state, frozen, batches)
    # Outputs of every frozen matrix over two devices; what does not divide (block scales in double
    # quantisation) is replicated.
    split = lambda leaf: (
        place(*[None] * (leaf.ndim - 1), "x")
        if leaf.ndim > 1 and leaf.shape[-1] % 2 == 0
        else place()
    )
    sharded = jax.tree.map(lambda leaf: jax.device_put(leaf, split(leaf)), frozen)
    assert any(
        len(leaf.sharding.device_set) == 2 and not leaf.sharding.is_fully_replicated
        for leaf in jax.tree.leaves(sharded)
    )
    spread = [jax.tree.map(lambda x: jax.device_put(x, place("x")), part) for part in batches]
    two, mesh_losses = run(step, jax.device_put(state, place()), sharded, spread)
    assert mesh_losses == pytest.approx(losses, rel=1e-5)  # sums over devices in another order
    assert error(two.trainable, one.trainable) < 1e-3  # Adam magnifies rounding of gradients near 0


def test_a_loss_of_ones_own_may_give_a_plain_mean() -> None:
    """Rows of equal weight: the step is that of the sum and its Sums, but for the accuracy."""

    def mean(*args: Any) -> jax.Array:
        total, sums = loss(*args)
        return total / sums.weight

    frozen, state = start()
    for parts in (1, 2):
        of_sums = jax.jit(make_train_step(loss, TX, accumulate=parts))(state, frozen, batch())
        plain = jax.jit(make_train_step(mean, TX, accumulate=parts))(state, frozen, batch())
        assert set(plain[1]) == {"loss", "grad_norm"}
        for name, value in plain[1].items():
            assert float(value) == pytest.approx(float(of_sums[1][name]), rel=1e-6)
        assert error(plain[0].trainable, of_sums[0].trainable) < 1e-4  # as for accumulation
    with pytest.raises(TypeError, match="needs a loss that gives .sum, Sums., and this one gives"):
        jax.eval_shape(make_eval_step(mean), frozen, state.trainable, batch())
