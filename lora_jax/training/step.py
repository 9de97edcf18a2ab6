"""The pure training and evaluation steps. Compilation is applied elsewhere (compile.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int

from lora_jax.core.trainable import Trainables, combine, partition
from lora_jax.tasks.losses import Sums

# loss(frozen, trainable, batch, key): a mean over the batch, or the sum over it with its Sums.
LossFn = Callable[[Any, Trainables, Any, jax.Array | None], Array | tuple[Array, Sums]]


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

    `loss_fn(frozen, trainable, batch, key)` gives the mean loss of the batch, or the sum of its
    losses with `Sums`; metrics are loss (mean), accuracy (with Sums alone) and grad_norm. `key`
    differs from step to step, for dropout.

    Learning rates are not read from `tx`, if `make_optimizer` made it, but from the state:

        make_optimizer(config, steps) -> tx ---- create_state(trainable, tx, key)
                                                   .opt_state   rates, decay, clipping, schedule
        make_optimizer(structure_of(config), 1)        |
                                  -> tx' ---- make_train_step(loss, tx')(state, frozen, batch)

    so that one compiled step, whose own rates are 1 and never used, serves runs of any rate.

    With `accumulate` k, the batch is cut into k equal parts along its first axis and their
    gradients are added up; sums and weights are added before they are divided, so the result is
    that of the whole batch even if the parts differ in weight. (Means are averaged: there the parts
    count alike.)
    """

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        trained, fixed = partition(state.trainable)
        key = jax.random.fold_in(state.key, state.step)
        of_part = functools.partial(_gradients, loss_fn, trained, fixed, frozen)

        if accumulate == 1:
            sums, grads = of_part(batch, key)
        else:
            sums, grads = _added_up(of_part, batch, key, accumulate)

        # A batch of filler has loss and gradient 0.
        weight = jnp.where(sums.weight > 0, sums.weight, 1.0)
        grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
        norm = optax.tree.norm(grads)

        # What is not trained is there for transformations that ask for it (a fixed `a`, the columns
        # in use).
        updates, opt_state = optax.with_extra_args_support(tx).update(
            grads, state.opt_state, trained, fixed=fixed, norm=norm
        )
        trainable = combine(optax.apply_updates(trained, updates), fixed)
        for name, value in (sums.variables or {}).items():
            if accumulate > 1:
                # Of micro-batches that all started from the same, the mean.
                value = (value / accumulate).astype(value.dtype)
            trainable[name] = trainable[name].replace(value=value)

        metrics = {"loss": sums.loss / weight}
        if sums.correct is not None:
            metrics["accuracy"] = sums.correct / weight
        metrics["grad_norm"] = norm
        return state.replace(step=state.step + 1, trainable=trainable, opt_state=opt_state), metrics

    return step


def _gradients(
    loss_fn: LossFn, trained: Any, fixed: Any, frozen: Any, batch: Any, key: jax.Array
) -> tuple[Sums, Any]:
    def total(tree: Any) -> tuple[Array, Sums]:
        return _with_sums(loss_fn(frozen, combine(tree, fixed), batch, key))

    (_, sums), grads = jax.value_and_grad(total, has_aux=True)(trained)
    return sums, grads


def _with_sums(loss: Array | tuple[Array, Sums]) -> tuple[Array, Sums]:
    """A plain loss is a mean: the sum over one thing of weight 1, of which nothing is right or
    wrong.
    """
    if isinstance(loss, tuple):
        return loss
    return loss, Sums(loss=loss, correct=None, weight=jnp.ones_like(loss))


def _added_up(
    gradients: Callable[[Any, jax.Array], tuple[Sums, Any]], batch: Any, key: jax.Array, parts: int
) -> tuple[Sums, Any]:
    """The sums and gradients of a batch, part after part: activations are those of one part."""
    cut = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[0], cut)
    shapes = jax.eval_shape(gradients, first, key)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients(*part)), None

    return jax.lax.scan(add, zero, (cut, jax.random.split(key, parts)))[0]


def make_eval_step(loss_fn: LossFn) -> Callable[[Any, Trainables, Any], Sums]:
    """`step(frozen, trainable, batch) -> Sums`, without dropout.

    Raises:
        TypeError: the loss gives a mean alone, and means of unlike batches cannot be added up.
    """

    def step(frozen: Any, trainable: Trainables, batch: Any) -> Sums:
        loss = loss_fn(frozen, trainable, batch, None)
        if not isinstance(loss, tuple):
            raise TypeError(
                "make_eval_step needs a loss that gives (sum, Sums), and this one gives a mean, "
                "which cannot be added up over batches. Give Sums as well, or call jax.jit of the "
                "loss itself."
            )
        return loss[1]

    return step


class There(NamedTuple):
    """The slots that have a run: the first `count` of `order`, a permutation of all."""

    order: Any
    count: Any


def make_stacked_step(step: Callable[..., Any], slots: int, lanes: int) -> Callable[..., Any]:
    """`step(state, frozen, shared, own, there) -> (state, metrics)`: a training step for each
    adapter of the leading axis.

    The batch of an adapter is `shared`, the same for all, with its entry of `own`. With fewer lanes
    than slots those that are `there` (None = all) take a step, one after another; the others stay
    as they are, and their metrics are 0.
    """

    def stacked(
        state: Any,
        frozen: Any,
        shared: dict[str, Any],
        own: dict[str, Any],
        there: There | None = None,
    ) -> Any:
        one = lambda state, own: step(state, frozen, {**shared, **own})
        if lanes >= slots:
            return jax.vmap(one)(state, own)
        metrics = _zeros(lambda *slot: one(*slot)[1], (state, own))
        # The states are carried: they stay in the memory of those that come in.
        take = lambda slot, now: one(_taken(now[0], slot), _taken(own, slot))
        return _one_by_one(take, (state, metrics), there or _all(slots))

    return stacked


def make_stacked_eval_step(step: Callable[..., Any], slots: int, lanes: int) -> Callable[..., Any]:
    """`step(frozen, trainable, batch, there)` with an adapter axis in what is trained and what it
    gives, zeros where nobody is `there`; the batch is the same for all.
    """

    def stacked(frozen: Any, trainable: Any, batch: Any, there: There | None = None) -> Any:
        one = lambda trainable: step(frozen, trainable, batch)
        if lanes >= slots:
            return jax.vmap(one)(trainable)
        given = _zeros(one, (trainable,))
        take = lambda slot, now: one(_taken(trainable, slot))
        return _one_by_one(take, given, there or _all(slots))

    return stacked


def _one_by_one(one: Callable[[Any, Any], Any], first: Any, there: There) -> Any:
    """`first` with what `one(slot, first so far)` gives in the place of each slot that is there."""

    def put(number: Any, now: Any) -> Any:
        slot = there.order[number]
        return jax.tree.map(lambda every, new: every.at[slot].set(new), now, one(slot, now))

    return jax.lax.fori_loop(0, there.count, put, first)


def _all(slots: int) -> There:
    return There(jnp.arange(slots), slots)


def _taken(every: Any, slot: Any) -> Any:
    return jax.tree.map(lambda x: x[slot], every)


def _zeros(one: Callable[..., Any], every: tuple[Any, ...]) -> Any:
    """Zeros in the shapes of what `one` gives of each slot."""
    shapes = jax.eval_shape(jax.vmap(one), *every)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
