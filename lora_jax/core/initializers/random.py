"""Initialisers that need the weight's shape alone. The update starts at 0, so nothing is taken out
of the base.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.core.initializers.start import Start
from lora_jax.core.lowrank import LoraSpec


def kaiming(w: Any, data: None, key: jax.Array, spec: LoraSpec) -> Start:
    """`a` uniform in +-1/sqrt(in): what PEFT and loralib do (Kaiming uniform with a = sqrt 5); `b`
    0.
    """
    rows, out = w.shape
    bound = 1 / math.sqrt(rows)
    a = jax.random.uniform(key, (rows, spec.rank), jnp.float32, -bound, bound)
    return Start(a, jnp.zeros((spec.rank, out), jnp.float32))


def gaussian(w: Any, data: None, key: jax.Array, spec: LoraSpec) -> Start:
    """`a` normal with standard deviation 1/rank (PEFT's `gaussian`; the LoRA paper gives no
    deviation); `b` 0.
    """
    rows, out = w.shape
    return Start(
        jax.random.normal(key, (rows, spec.rank), jnp.float32) / spec.rank,
        jnp.zeros((spec.rank, out), jnp.float32),
    )


def orthogonal(w: Any, data: None, key: jax.Array, spec: LoraSpec) -> Start:
    """`a` and `b` both away from 0, with `a @ b` = 0: they use alternate rows of one orthogonal
    matrix (PEFT's `orthogonal`).

    With Q (rank, rank) orthogonal and G, H normal: a = G Q[even] / 10 and b = Q[odd]^T H / 10. In
    floating point the product is about 1e-7 of the factors' size, not 0.

    Raises:
        ValueError: the rank is odd.
    """
    rows, out = w.shape
    if spec.rank % 2:
        raise ValueError(
            "init='orthogonal' needs an even rank (its two halves are orthogonal), got "
            f"{spec.rank}."
        )
    q_key, a_key, b_key = jax.random.split(key, 3)
    q, _ = jnp.linalg.qr(jax.random.normal(q_key, (spec.rank, spec.rank), jnp.float32))
    half = spec.rank // 2
    a = jax.random.normal(a_key, (rows, half), jnp.float32) @ q[0::2] / 10
    b = q[1::2].T @ jax.random.normal(b_key, (half, out), jnp.float32) / 10
    return Start(a, b)
