"""The tokens that count in a loss, a pass of them at a time; those of weight 0 come in none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Called with what was gathered so far, a pass's rows, their weights and their arrays: the losses of
# these rows, whether each is right, and what is gathered then.
Each = Callable[..., tuple[Array, Array, Any]]


def in_passes(
    sizes: Sequence[int],
    weight: Float[Array, " tokens"],
    arrays: Sequence[Array],
    each: Each,
    gathered: Any,
) -> tuple[Float[Array, ""], Float[Array, " tokens"], Float[Array, " tokens"], Any]:
    """The sum of weighted losses, each token's weighted loss and its weight if right, and what was
    gathered.

    A pass has as many tokens as `sizes` says, what is left over the second size if there are two.
    Rows that fill up the last one are row `tokens`, which is none: zeros are read there, and
    `x.at[rows].set(y, mode="drop")` writes nothing.
    """
    tokens, count = weight.shape[0], (weight != 0).sum()
    sizes = sorted({min(size, tokens) for size in sizes}, reverse=True)
    order = jnp.where(jnp.arange(tokens) < count, jnp.argsort(weight == 0, stable=True), tokens)
    # With room for a pass that begins at the last.
    order = jnp.pad(order, (0, sizes[0]), constant_values=tokens)
    State = tuple[Array, Array, Array, Array, Any]

    def step(size: int, state: State) -> State:
        start, total, losses, correct, gathered = state
        rows = jax.lax.dynamic_slice_in_dim(order, start, size)
        w, *own = (
            jnp.take(array, rows, axis=0, mode="fill", fill_value=0)
            for array in (weight.astype(jnp.float32), *arrays)
        )
        loss, right, gathered = each(gathered, rows, w, *own)
        loss = loss * w
        return (
            start + size,
            total + loss.sum(),
            losses.at[rows].set(loss, mode="drop"),
            correct.at[rows].set(right * w, mode="drop"),
            gathered,
        )

    zero, none = jnp.zeros((), jnp.float32), jnp.zeros(tokens, jnp.float32)
    state: State = (jnp.zeros((), jnp.int32), zero, none, none, gathered)
    large, small = sizes[0], sizes[-1]
    if large > small:  # Half a large pass is worth it: four small ones take longer.
        state = jax.lax.while_loop(
            lambda state: count - state[0] > large // 2, functools.partial(step, large), state
        )
    return jax.lax.while_loop(
        lambda state: state[0] < count, functools.partial(step, small), state
    )[1:]


def cotangent_of_sum(cotangents: tuple[Any, ...]) -> Array:
    """The cotangent of a loss's sum, the first of its results: the gradient was formed with the
    loss, for that sum.

    Raises:
        ValueError: a gradient was asked of single tokens' losses.
    """
    total, *each = cotangents
    if not all(isinstance(one, jax.custom_derivatives.SymbolicZero) for one in each):
        raise ValueError(
            "The gradient of a loss over the vocabulary is that of its sum, and single tokens' "
            "losses were differentiated. Take `total`, and weigh tokens by the batch's "
            "loss_weight."
        )
    return total
