"""Structured factors of an update as ordinary ones, `(a * scale) @ b`: what every product, merge
and file can work with.

Each takes factors a (*stack, in, r), b (*stack, r, out) and the scale of each column (*stack, r),
and returns such a triple with more columns. A column of scale 0 stays one, so padding is undone.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

Triple = tuple[Array, Array, Array]


def hadamard(
    a: Float[Array, "*stack in r"],
    b: Float[Array, "*stack r out"],
    scale: Float[Array, "*stack r"],
    a2: Float[Array, "*stack in r"],
    b2: Float[Array, "*stack r out"],
) -> Triple:
    """Factors of `(a b) * (a2 b2)`, entry by entry: r² columns, a product of two columns each."""
    stack, rank = a.shape[:-2], a.shape[-1]
    rows = (a[..., :, None] * a2[..., None, :]).reshape(*stack, -1, rank * rank)
    columns = (b[..., :, None, :] * b2[..., None, :, :]).reshape(*stack, rank * rank, -1)
    both = scale[..., :, None] * (scale != 0)[..., None, :]
    return rows, columns, both.reshape(*stack, rank * rank)


def kronecker(
    a: Float[Array, "*stack in r"],
    b: Float[Array, "*stack r out"],
    scale: Float[Array, "*stack r"],
    outer: Float[Array, "*stack m n"],
) -> Triple:
    """Factors of the Kronecker product of `outer` with `a b`: n r columns, as it is (outer ⊗ a)
    (1 ⊗ b).
    """
    stack, n, rank = a.shape[:-2], outer.shape[-1], a.shape[-1]
    rows = jnp.einsum("...mn,...ir->...minr", outer, a).reshape(*stack, -1, n * rank)
    same = jnp.eye(n, dtype=b.dtype)
    columns = jnp.einsum("np,...ro->...nrpo", same, b).reshape(*stack, n * rank, -1)
    repeated = jnp.broadcast_to(scale[..., None, :], (*stack, n, rank))
    return rows, columns, repeated.reshape(*stack, n * rank)


def blockwise(
    a: Float[Array, "*stack in r"],
    b: Float[Array, "*stack r out"],
    scale: Float[Array, "*stack r"],
    count: int,
) -> Triple:
    """Factors of an update of `count` x `count` blocks with r / count columns each (GraLoRA).

    Block (m, n), of the m-th part of the inputs and the n-th of the outputs, is
    `a[m, n::count] b[m::count, n]`: it has every count-th column of its inputs' part of `a`, and
    every count-th row of its outputs' part of `b`. (PEFT has them side by side; so they stay in
    place when the rank is padded.)
    """
    stack, short = a.shape[:-2], -a.shape[-1] % count
    lead = [(0, 0)] * len(stack)
    a = jnp.pad(a, [*lead, (0, 0), (0, short)])
    b = jnp.pad(b, [*lead, (0, short), (0, 0)])
    scale = jnp.pad(scale, [*lead, (0, short)])

    each = a.shape[-1] // count
    a = a.reshape(*stack, count, -1, each, count)
    b = b.reshape(*stack, each, count, count, -1)
    scale = scale.reshape(*stack, each, count)
    same = jnp.eye(count, dtype=a.dtype)
    # m, p: parts of the inputs; n, q: parts of the outputs; t: columns of a block.
    rows = jnp.einsum("...mitn,mp->...miptn", a, same)
    columns = jnp.einsum("...tpqo,nq->...ptnqo", b, same)
    both = scale[..., None, :, :] * (jnp.moveaxis(scale, -1, -2) != 0)[..., None]

    width = count * each * count
    rows, columns = rows.reshape(*stack, -1, width), columns.reshape(*stack, width, -1)
    return rows, columns, both.reshape(*stack, width)
