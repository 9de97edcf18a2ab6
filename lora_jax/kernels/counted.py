"""The tokens that count in a loss, a pass of them at a time; those of weight 0 come in none."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def counted_first(
    weight: Float[Array, " tokens"], longest: int
) -> tuple[Int[Array, ""], Int[Array, " order"]]:
    """How many tokens count, and their rows in order, with room for a pass that begins at the last.

    What follows them is row `tokens`, which is none: `gather_rows` reads zeros there, and
    `x.at[rows].set(y, mode="drop")` writes nothing.
    """
    tokens, count = weight.shape[0], (weight != 0).sum()
    order = jnp.where(jnp.arange(tokens) < count, jnp.argsort(weight == 0, stable=True), tokens)
    return count, jnp.pad(order, (0, longest), constant_values=tokens)


def gather_rows(rows: Int[Array, " pass"], *arrays: Array) -> tuple[Array, ...]:
    """These rows of every array, zeros for those that there are not."""
    return tuple(jnp.take(array, rows, axis=0, mode="fill", fill_value=0) for array in arrays)


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
