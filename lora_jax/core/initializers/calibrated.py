"""Initialisers that look at data: LoRA-GA (W's gradient), EVA and CorDA (its inputs' moments).

`lora_jax.adapters.calibration` measures both over batches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.core.initializers.start import Start, from_svd, residual_of
from lora_jax.core.lowrank import LoraSpec

GAMMA = 16.0  # LoRA-GA's stable_gamma, PEFT's default


def lora_ga(
    w: Float[Array, "in out"], data: Float[Array, "in out"], key: jax.Array, spec: LoraSpec
) -> Start:
    """Factors along the leading singular directions of a gradient G of W (LoRA-GA, Wang et al.
    2024, arXiv 2407.05000).

    G = U S V^T gives a = U[:, :r] and b = (S V^T)[r:2r] * out^(1/4) / sqrt(16): PEFT's default
    family (direction 'ArB2r', scale 'stable'), by an exact SVD. The residual is W - scale * a @ b.

    Raises:
        ValueError: 2 * rank exceeds the smaller side of W.
    """
    r = spec.rank
    if 2 * r > min(w.shape):
        raise ValueError(
            f"init='lora_ga' uses 2 * rank singular directions of a {w.shape[0]} x {w.shape[1]} "
            f"gradient, got rank {r}."
        )
    u, s, vt = jnp.linalg.svd(data.astype(jnp.float32), full_matrices=False)
    a = u[:, :r]
    b = s[r : 2 * r, None] * vt[r : 2 * r] * (w.shape[1] ** 0.25 / GAMMA**0.5)
    return Start(a, b, residual_of(w, a, b, spec))


def eva(
    w: Float[Array, "in out"], data: Float[Array, "in in"], key: jax.Array, spec: LoraSpec
) -> Start:
    """`a` from the leading principal directions of W's inputs, `b` 0 (EVA, Paischer et al. 2024,
    arXiv 2410.07170).

    `data` is the inputs' second moment X^T X (any scale); its leading eigenvectors are the right
    singular vectors of X. Means are not taken off, as in the paper's definition. Ranks are not
    moved between sites here; `eva_ranks` says how.
    """
    _, vectors = jnp.linalg.eigh(data.astype(jnp.float32))
    a = vectors[:, ::-1][:, : spec.rank]
    return Start(a, jnp.zeros((spec.rank, w.shape[1]), jnp.float32))


def corda(
    w: Float[Array, "in out"],
    data: Float[Array, "in in"],
    key: jax.Array,
    spec: LoraSpec,
    *,
    last: bool = False,
) -> Start:
    """Factors of the directions of W that matter most for the inputs (CorDA, Yang et al. 2024,
    arXiv 2406.05223; 'ipm'); with `last` those that matter least, so that what the inputs use is
    preserved ('kpm').

    C is the inputs' second moment, divided by its mean diagonal and damped; C W = U S V^T gives a =
    C^-1 U_r sqrt(S_r / scale) and b = sqrt(S_r / scale) V_r^T. The residual is W - scale * a @ b.
    """
    w = w.astype(jnp.float32)
    moment = data.astype(jnp.float32)
    # The balance between a and b depends on the moment's scale: one unit for all sites.
    moment = moment / jnp.maximum(jnp.trace(moment) / moment.shape[0], 1e-30)
    moment, inverse = _damped_inverse(moment)
    u, s, vt = jnp.linalg.svd(moment @ w, full_matrices=False)
    if last:
        u, s, vt = u[:, -spec.rank :], s[-spec.rank :], vt[-spec.rank :]
    a, b = from_svd(inverse @ u, s, vt, spec)
    return Start(a, b, residual_of(w, a, b, spec))


def _damped_inverse(moment: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """The moment with 0.01 of its mean diagonal added, and its inverse.

    What is added is doubled until their product is the identity to within 0.05, as in PEFT and in
    the authors' code, with a limit of 20 doublings.
    """
    eye = jnp.eye(moment.shape[0], dtype=moment.dtype)
    unit = jnp.trace(moment) / moment.shape[0]

    def damped(power: Array) -> tuple[Array, Array]:
        matrix = moment + 0.01 * 2.0**power * unit * eye
        return matrix, jnp.linalg.inv(matrix)

    def bad(power: Array) -> Array:
        matrix, inverse = damped(power)
        return (jnp.linalg.norm(matrix @ inverse - eye) >= 0.05) & (power < 20)

    return damped(jax.lax.while_loop(bad, lambda power: power + 1, jnp.zeros((), jnp.int32)))
