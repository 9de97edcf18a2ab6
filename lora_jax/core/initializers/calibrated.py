"""Initialisers that look at data: LoRA-GA and LoRA-One (W's gradient), EVA and CorDA (its inputs'
moments), CLoQ and EoRA (those, and what quantising W loses).

`lora_jax.adapters.calibration` measures both over batches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.core.initializers.start import Start, from_svd, residual_of
from lora_jax.core.lowrank import LoraSpec

GAMMA = 16.0  # LoRA-GA's stable_gamma, PEFT's default
GAMMA_OF_ONE = 128.0  # LoRA-One's, in its authors' code
_FLOOR = 1e-6  # of the largest eigenvalue of a moment: smaller ones are float32's noise


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


def lora_one(
    w: Float[Array, "in out"], data: Float[Array, "in out"], key: jax.Array, spec: LoraSpec
) -> Start:
    """Factors along a step of steepest descent: of the rank's best approximation of the negative
    gradient -G = U S V^T (LoRA-One, Zhang et al. 2025, arXiv 2502.01235).

    a = U_r sqrt(S_r / S_1) / sqrt(128) and b = sqrt(S_r / S_1) V_r^T / sqrt(128), as in the authors'
    code. There the start stays in the sum, as a first step of full fine-tuning; here it is taken
    out of the base like every other, and what is left of the method is the directions.
    """
    u, s, vt = jnp.linalg.svd(-data.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(s[: spec.rank] / (jnp.maximum(s[0], 1e-30) * GAMMA_OF_ONE))
    a, b = u[:, : spec.rank] * root, root[:, None] * vt[: spec.rank]
    return Start(a, b, residual_of(w, a, b, spec))


def cloq(
    w: Float[Array, "in out"],
    data: tuple[Float[Array, "in in"], Float[Array, "in out"]],
    key: jax.Array,
    spec: LoraSpec,
    *,
    values_in_b: bool = False,
) -> Start:
    """Factors that make up for what quantising W to Q loses of its outputs: of all of their rank
    those with the least ||X (W - Q - scale a b)||_F over the measured inputs X (CLoQ, Deng et al.
    2025, arXiv 2501.18475, section 3). It is added to Q, not taken out of it.

    `data` is the inputs' second moment X^T X (any scale), and Q. With X^T X = U diag(s) U^T and R =
    diag(sqrt s) U^T, the best approximation of R (W - Q) of the rank is L_r diag(t_r) V_r^T, and
    a = R^-1 L_r diag(t_r), b = V_r^T / scale. EoRA (Liu et al. 2024, arXiv 2410.21271, section 3)
    projects W - Q into the eigenspace of the same moment and has the same product; its singular
    values stand in the other factor (`values_in_b`), where the moment is taken in units of its mean
    diagonal. Eigenvalues below a millionth of the largest count as that: of inputs along these
    directions nothing is known.
    """
    moment, quantized = (x.astype(jnp.float32) for x in data)
    moment = moment / jnp.maximum(jnp.trace(moment) / moment.shape[0], 1e-30)
    values, vectors = jnp.linalg.eigh(moment)
    root = jnp.sqrt(jnp.maximum(values, jnp.maximum(_FLOOR * values[-1], 1e-30)))
    lost = root[:, None] * _exact(vectors.T, w.astype(jnp.float32) - quantized)
    left, size, right = jnp.linalg.svd(lost, full_matrices=False)
    r = spec.rank
    a, b, size = _exact(vectors, left[:, :r] / root[:, None]), right[:r], size[:r]
    a, b = (a, size[:, None] * b) if values_in_b else (a * size, b)
    return Start(a, b / spec.effective_scale)


def _exact(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


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
