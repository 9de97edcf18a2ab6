"""What an initialiser returns, and what all of them share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.core.lowrank import LoraSpec


class Start(NamedTuple):
    """First factors of one matrix, and what then remains of the pretrained weight.

    residual: `W - scale * a @ b`; None where nothing is taken out of the base (`a @ b` is 0).
    """

    a: Float[Array, "in r"]
    b: Float[Array, "r out"]
    residual: Any = None


def from_svd(
    u: Float[Array, "in n"], s: Float[Array, " n"], vt: Float[Array, "n out"], spec: LoraSpec
) -> tuple[Float[Array, "in r"], Float[Array, "r out"]]:
    """Factors with `scale * a @ b = u diag(s) vt` of the first `rank` of n components.

    Each of the two gets sqrt(s / |scale|).
    """
    r, scale = spec.rank, spec.effective_scale
    root = jnp.sqrt(s[:r] / abs(scale))
    return u[:, :r] * root, (jnp.sign(scale) * root)[:, None] * vt[:r]


def residual_of(
    w: Float[Array, "*stack in out"],
    a: Float[Array, "*stack in r"],
    b: Float[Array, "*stack r out"],
    spec: LoraSpec,
) -> Float[Array, "*stack in out"]:
    """`W - scale * a @ b` in float32."""
    return w.astype(jnp.float32) - (a * spec.effective_scale) @ b


def randomized_svd(
    w: Float[Array, "in out"], rank: int, iterations: int, key: jax.Array
) -> tuple[Float[Array, "in n"], Float[Array, " n"], Float[Array, "n out"]]:
    """The leading `rank` singular triplets, nearly: u (in, rank), s, vt (rank, out).

    Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), algorithm 4.4 with 8 more directions than
    asked for and `iterations` rounds of subspace iteration, each made orthogonal again.
    """
    n = min(rank + 8, *w.shape)
    q, _ = jnp.linalg.qr(w @ jax.random.normal(key, (w.shape[1], n), w.dtype))
    for _ in range(iterations):
        back, _ = jnp.linalg.qr(w.T @ q)
        q, _ = jnp.linalg.qr(w @ back)
    u, s, vt = jnp.linalg.svd(q.T @ w, full_matrices=False)
    return (q @ u)[:, :rank], s[:rank], vt[:rank]
