"""DoRA's column norms, without forming the dense update (Liu et al. 2024, arXiv 2402.09353,
sections 4.1 and 4.3).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.core.lowrank import LowRank

_EXACT = (
    jax.lax.Precision.HIGHEST
)  # A norm is the difference of large sums where an update removes part of the base.


def column_squares(base: Float[Array, "*stack in out"], low: LowRank) -> Float[Array, "*stack out"]:
    """Squared norm of each output column of `base + update`, in float32.

    ||W||^2 + 2 <W, A B> + ||A B||^2 column by column, with A = a * scale: the work is that of one product of W with a thin
    matrix, and nothing of W's size is made. `low.base_square`, where it is given, replaces ||W||^2.
    """
    plain = low.plain()
    a = plain.a.astype(jnp.float32) * plain.scale[..., None, :]
    b = plain.b.astype(jnp.float32)
    base = base.astype(jnp.float32)
    square = low.base_square if low.base_square is not None else (base * base).sum(-2)
    cross = jnp.einsum("...ir,...io->...ro", a, base, precision=_EXACT)
    gram = jnp.einsum("...ir,...is->...rs", a, a, precision=_EXACT)
    own = jnp.einsum("...rs,...so->...ro", gram, b, precision=_EXACT)
    return jnp.maximum(square + ((2 * cross + own) * b).sum(-2), 0.0)


def column_factors(base: Float[Array, "*stack in out"], low: LowRank) -> Float[Array, "*stack out"]:
    """`magnitude / ||W + update||` for each output column, the norm held constant in gradients
    (section 4.3).

    1 where a layer has no active column (it is not adapted), and where the norm is 0 (there is no
    direction to scale).
    """
    norm = jnp.sqrt(
        jax.lax.stop_gradient(
            column_squares(jax.lax.stop_gradient(base), jax.lax.stop_gradient(low))
        )
    )
    used = (low.scale != 0).any(-1)[..., None] & (norm > 0)
    return jnp.where(used, low.magnitude / jnp.where(used, norm, 1.0), 1.0)
