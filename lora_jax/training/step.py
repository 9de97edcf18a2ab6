"""The pure training and evaluation steps. Compilation is applied elsewhere (compile.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int

from lora_jax.adapters.apply import Trainables
from lora_jax.tasks.losses import Sums
from lora_jax.training.optim import combine, partition

LossFn = Callable[[Any, Trainables, Any, jax.Array | None], tuple[Array, Sums]]


class TrainState(struct.PyTreeNode):
    """All that training changes. The frozen base is not in it: it is an argument of the step, and
    never donated.
    """

    step: Int[Array, ""]
    trainable: Any
    opt_state: Any
    key: jax.Array


def create_state(
    trainable: Trainables, tx: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """The state before the first step; the optimiser's state covers trained leaves only."""
    trained, _ = partition(trainable)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=dict(trainable),
        opt_state=tx.init(trained),
        key=key,
    )


def make_train_step(
    loss_fn: LossFn, tx: optax.GradientTransformation, *, accumulate: int = 1
) -> Callable[..., Any]:
    """`step(state, frozen, batch) -> (state, metrics)`, a pure function; gradients are taken of
    trained leaves alone.

    With `accumulate` k, the batch is cut into k equal parts along its first axis and their
    gradients are added up; sums and weights are added before they are divided, so the result is
    that of the whole batch even if the parts differ in weight.
    """

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        trained, fixed = partition(state.trainable)
        key = jax.random.fold_in(state.key, state.step)

        def gradients(part: Any, part_key: jax.Array) -> tuple[Sums, Any]:
            total = lambda tree: loss_fn(frozen, combine(tree, fixed), part, part_key)
            (_, sums), grads = jax.value_and_grad(total, has_aux=True)(trained)
            return sums, grads

        if accumulate == 1:
            sums, grads = gradients(batch, key)
        else:
            parts = jax.tree.map(
                lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), batch
            )
            zero = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype),
                jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], parts), key),
            )
            add = lambda total, part: (jax.tree.map(jnp.add, total, gradients(*part)), None)
            (sums, grads), _ = jax.lax.scan(add, zero, (parts, jax.random.split(key, accumulate)))
        weight = jnp.where(
            sums.weight > 0, sums.weight, 1.0
        )  # A batch of filler has loss and gradient 0.
        grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
        # What is not trained is there for transformations that ask for it (a fixed `a`, the columns
        # in use).
        updates, opt_state = optax.with_extra_args_support(tx).update(
            grads, state.opt_state, trained, fixed=fixed
        )
        trainable = combine(optax.apply_updates(trained, updates), fixed)
        metrics = {
            "loss": sums.loss / weight,
            "accuracy": sums.correct / weight,
            "grad_norm": optax.tree.norm(grads),
        }
        return state.replace(step=state.step + 1, trainable=trainable, opt_state=opt_state), metrics

    return step


def make_eval_step(loss_fn: LossFn) -> Callable[[Any, Trainables, Any], Sums]:
    """`step(frozen, trainable, batch) -> Sums`, without dropout."""

    def step(frozen: Any, trainable: Trainables, batch: Any) -> Sums:
        return loss_fn(frozen, trainable, batch, None)[1]

    return step


def make_stacked_step(step: Callable[..., Any], slots: int, lanes: int) -> Callable[..., Any]:
    """`step(state, frozen, shared, own) -> (state, metrics)`: a training step for each adapter of
    the leading axis.

    The batch of an adapter is `shared`, the same for all, with its entry of `own`.
    """

    def stacked(state: Any, frozen: Any, shared: dict[str, Any], own: dict[str, Any]) -> Any:
        return _each(
            lambda one: step(one[0], frozen, {**shared, **one[1]}), (state, own), slots, lanes
        )

    return stacked


def make_stacked_eval_step(step: Callable[..., Any], slots: int, lanes: int) -> Callable[..., Any]:
    """`step(frozen, trainable, batch) -> Sums` with an adapter axis; the batch is the same for
    all.
    """
    return lambda frozen, trainable, batch: _each(
        lambda one: step(frozen, one, batch), trainable, slots, lanes
    )


def _each(one: Callable[[Any], Any], every: Any, slots: int, lanes: int) -> Any:
    if lanes >= slots:
        return jax.vmap(one)(every)
    return jax.lax.map(one, every, batch_size=lanes if lanes > 1 else None)
