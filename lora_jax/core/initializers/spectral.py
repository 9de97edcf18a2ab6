"""Initialisers that decompose the weight: PiSSA, MiLoRA, OLoRA; LoftQ and QPiSSA choose a base."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.core.initializers.start import Start, from_svd, randomized_svd, residual_of
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.quantize import QuantizedArray, QuantSpec, quantize


def pissa(
    w: Float[Array, "in out"],
    data: None,
    key: jax.Array,
    spec: LoraSpec,
    *,
    iterations: int | None = None,
) -> Start:
    """The `rank` largest singular triplets of W as factors; the residual holds the rest.

    W = U S V^T gives a = U_r sqrt(S_r / scale) and b = sqrt(S_r / scale) V_r^T (PiSSA, Meng et al.
    2024, arXiv 2404.02948). With `iterations` by randomised SVD with that many subspace iterations
    (the paper's fast SVD; PEFT's `pissa_niter_N`).
    """
    w = w.astype(jnp.float32)
    if iterations is None:
        triplets = jnp.linalg.svd(w, full_matrices=False)
    else:
        triplets = randomized_svd(w, spec.rank, iterations, key)
    a, b = from_svd(*triplets, spec)
    return Start(a, b, residual_of(w, a, b, spec))


def milora(w: Float[Array, "in out"], data: None, key: jax.Array, spec: LoraSpec) -> Start:
    """The `rank` smallest singular triplets of W as factors, split as `pissa` does; the residual
    holds the principal ones, which training then leaves alone (MiLoRA, Wang et al. 2024, arXiv
    2406.09044).
    """
    w, r = w.astype(jnp.float32), spec.rank
    u, s, vt = jnp.linalg.svd(w, full_matrices=False)
    a, b = from_svd(u[:, -r:], s[-r:], vt[-r:], spec)
    return Start(a, b, residual_of(w, a, b, spec))


def olora(w: Float[Array, "in out"], data: None, key: jax.Array, spec: LoraSpec) -> Start:
    """The leading columns of a QR decomposition: W^T = Q R gives b = Q_r^T and a = R_r^T (OLoRA,
    Büyükakyüz 2024, arXiv 2406.01775).

    As in PEFT the scale is not divided out: the residual is W - scale * a @ b.
    """
    w = w.astype(jnp.float32)
    q, r = jnp.linalg.qr(w.T)
    a, b = r[: spec.rank].T, q[:, : spec.rank].T
    return Start(a, b, residual_of(w, a, b, spec))


def loftq(
    w: Float[Array, "*stack in out"],
    data: QuantSpec,
    key: jax.Array,
    spec: LoraSpec,
    *,
    iterations: int = 1,
) -> tuple[Float[Array, "*stack in r"], Float[Array, "*stack r out"], QuantizedArray]:
    """Factors and a quantised base that together are nearer W than the quantised W is (LoftQ, Li et
    al. 2023, arXiv 2310.08659).

    Alternates Q = quantize(W - scale * a @ b) and scale * a @ b = the best rank-r approximation of
    W - Q. PEFT leaves the scale out, so that its correction is wrong by that factor unless alpha =
    rank. Of all iterates the best is kept, matrix by matrix; a matrix that none improves keeps its
    plain codes and b = 0 (with `a` as `kaiming` has it).
    """
    w = w.astype(jnp.float32)

    def svd(x: Array) -> Any:
        return jnp.linalg.svd(x, full_matrices=False)

    def factors(u: Array, s: Array, vt: Array) -> Any:
        return from_svd(u, s, vt, spec)

    for _ in range(w.ndim - 2):
        svd, factors = jax.vmap(svd), jax.vmap(factors)

    bound = 1 / jnp.sqrt(w.shape[-2])
    a = jax.random.uniform(key, (*w.shape[:-1], spec.rank), jnp.float32, -bound, bound)
    b = jnp.zeros((*w.shape[:-2], spec.rank, w.shape[-1]), jnp.float32)
    best = (a, b, quantize(w, data))
    error = _error(w, *best, spec)

    a = jnp.zeros_like(a)
    for _ in range(iterations):
        codes = quantize(residual_of(w, a, b, spec), data)
        a, b = factors(*svd(w - codes.matrix(jnp.float32)))
        tried = (a, b, codes)
        new = _error(w, *tried, spec)
        better = new < error

        def choose(x: Any, y: Any, better: Any = better) -> Any:
            return jnp.where(better.reshape(*better.shape, *[1] * (x.ndim - better.ndim)), x, y)

        best = jax.tree.map(choose, tried, best)
        error = jnp.minimum(new, error)
    return best


def qpissa(
    w: Float[Array, "*stack in out"], data: QuantSpec, key: jax.Array, spec: LoraSpec
) -> tuple[Float[Array, "*stack in r"], Float[Array, "*stack r out"], QuantizedArray]:
    """PiSSA's factors and its residual, quantised (QPiSSA, Meng et al. 2024, section 4).

    Less is lost than of W itself, since its largest part is in the factors.
    """

    def one(x: Array) -> Start:
        return pissa(x, None, key, spec)

    for _ in range(w.ndim - 2):
        one = jax.vmap(one)
    a, b, residual = one(w)
    return a, b, quantize(residual, data)


def _error(
    w: Array, a: Array, b: Array, codes: QuantizedArray, spec: LoraSpec
) -> Float[Array, "*stack"]:
    return jnp.square(residual_of(w, a, b, spec) - codes.matrix(jnp.float32)).sum((-1, -2))
