"""The stacked step: each adapter's step is its own, one that is broken stays alone, and the frozen
base is multiplied once.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_task import PLAIN, batch, loss, make

from lora_jax import LoraSpec, create_state, make_eval_step, make_optimizer, make_train_step
from lora_jax.adapters.stacking import pad
from lora_jax.training.step import There, make_stacked_eval_step, make_stacked_step

TX = make_optimizer(PLAIN, 100)
STEP = make_train_step(loss, TX)


def three(quant: bool = False) -> tuple[Any, list[Any]]:
    """A base, and states of rank 1, 2 and 4 padded to rank 4."""
    made = [make(LoraSpec(rank=rank, alpha=4.0), quant) for rank in (1, 2, 4)]
    wide = made[-1][1]
    return made[0][0], [
        create_state(pad(trainable, wide), TX, jax.random.key(n))
        for n, (_, trainable) in enumerate(made)
    ]


def stacked(states: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *states)


def close(one: Any, two: Any) -> None:
    for x, y in zip(
        jax.tree.leaves((one.trainable, one.opt_state)),
        jax.tree.leaves((two.trainable, two.opt_state)),
        strict=True,
    ):
        np.testing.assert_allclose(
            x, y, rtol=1e-4, atol=1e-6
        )  # float32 sums in another order, through Adam


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("own", [False, True])
def test_a_step_of_many_is_the_step_of_each(lanes: int, own: bool) -> None:
    frozen, states = three(quant=True)
    batches = [batch(seed=n if own else 0) for n in range(3)]
    shared, each = ({}, jax.tree.map(lambda *x: np.stack(x), *batches)) if own else (batches[0], {})
    state, metrics = jax.jit(make_stacked_step(STEP, 3, lanes))(
        stacked(states), frozen, shared, each
    )
    for n in range(3):
        alone, expected = jax.jit(STEP)(states[n], frozen, batches[n])
        close(jax.tree.map(lambda x, n=n: x[n], state), alone)
        assert {name: float(value[n]) for name, value in metrics.items()} == pytest.approx(
            jax.tree.map(float, expected), rel=1e-5
        )


def test_slots_without_a_run_take_no_step_and_have_no_score() -> None:
    frozen, states = three()
    first = stacked(states)
    some = There(np.array([2, 0, 1], np.int32), np.int32(2))
    step = jax.jit(make_stacked_step(STEP, 3, 1))
    every, _ = step(first, frozen, batch(), {})
    state, metrics = step(first, frozen, batch(), {}, some)
    score = jax.jit(make_stacked_eval_step(make_eval_step(loss), 3, 1))
    sums = score(frozen, first.trainable, batch(), some)
    assert (metrics["loss"] > 0).tolist() == (sums.loss > 0).tolist() == [True, False, True]
    for n, expected in enumerate((every, first, every)):
        same = jax.tree.map(lambda x, y, n=n: bool((x[n] == y[n]).all()), state, expected)
        assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_adapter_of_nans_stays_alone_with_them(lanes: int) -> None:
    frozen, states = three()
    broken = states[1].replace(
        trainable=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), states[1].trainable)
    )
    step = jax.jit(make_stacked_step(STEP, 3, lanes))
    mixed, metrics = step(stacked([states[0], broken, states[2]]), frozen, batch(), {})
    sound, _ = step(stacked(states), frozen, batch(), {})
    assert np.isnan(metrics["loss"]).tolist() == [False, True, False]
    for n in (0, 2):
        one, two = (
            jax.tree.map(lambda x, n=n: x[n], state.replace(key=jnp.zeros(3)))
            for state in (mixed, sound)
        )
        assert all(
            np.array_equal(x, y)
            for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
        )


def test_all_at_once_the_base_is_dequantised_and_multiplied_once() -> None:
    frozen, states = three(quant=True)
    alone = str(jax.make_jaxpr(STEP)(states[0], frozen, batch()))
    together = str(
        jax.make_jaxpr(make_stacked_step(STEP, 3, 3))(stacked(states), frozen, batch(), {})
    )
    # No more products than one adapter has, and no copy of the codes or of the dequantised weight
    # an adapter.
    assert together.count("dot_general[") == alone.count("dot_general[")
    for codes in ("u8[3,3,8]", "u8[3,4,8]"):
        assert codes not in together
    assert "u8[3,8]" in together or "u8[4,8]" in together


def test_evaluation_gives_the_sums_of_each() -> None:
    frozen, states = three()
    trainable = jax.tree.map(lambda *x: jnp.stack(x), *[state.trainable for state in states])
    alone = jax.jit(make_eval_step(loss))
    expected = [float(alone(frozen, state.trainable, batch()).loss) for state in states]
    for lanes in (1, 3):
        sums = jax.jit(make_stacked_eval_step(make_eval_step(loss), 3, lanes))(
            frozen, trainable, batch()
        )
        np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)
