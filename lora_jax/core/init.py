"""First values of the factors: one table of pure functions. `b` starts at 0, so the adapted model starts as the base."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.core.lowrank import LoraSpec, LowRank
from lora_jax.core.paths import nearest

Initializer = Callable[[jax.Array, int, int], Array]  # key, in, rank -> a


def kaiming(key: jax.Array, rows: int, rank: int) -> Float[Array, "in r"]:
    """Uniform in +-1/sqrt(in): what PEFT and loralib do (Kaiming uniform with a = sqrt 5)."""
    bound = 1 / math.sqrt(rows)
    return jax.random.uniform(key, (rows, rank), jnp.float32, -bound, bound)


def gaussian(key: jax.Array, rows: int, rank: int) -> Float[Array, "in r"]:
    """Normal with standard deviation 1/rank (PEFT's `gaussian`; the paper gives no deviation)."""
    return jax.random.normal(key, (rows, rank), jnp.float32) / rank


INITIALIZERS: dict[str, Initializer] = {"kaiming": kaiming, "gaussian": gaussian}


def initialize(key: jax.Array, stack: tuple[int, ...], rows: int, out: int, spec: LoraSpec, *, in_axes: tuple[int, ...] = (0,)) -> LowRank:
    """New factors of a site whose weights are a stack of (rows, out) matrices; layers that `spec` leaves out have scale 0.

    Every matrix of the stack has a key of its own.

    Raises:
        ValueError: the rank exceeds the smaller side, the initialiser is unknown, or `spec.layers` does not fit the stack.
    """
    if spec.rank > min(rows, out):
        raise ValueError(
            f"Rank {spec.rank} is larger than the smaller side of a {rows} x {out} weight: at most {min(rows, out)} columns can "
            "differ. Lower the rank here, or give this site a rule of its own."
        )
    if spec.init not in INITIALIZERS:
        raise ValueError(
            f"Unknown LoRA init {spec.init!r}. Known: {', '.join(INITIALIZERS)}; nearest: {nearest(spec.init, INITIALIZERS, 1)[0]!r}."
        )
    keys = jax.random.split(key, math.prod(stack))
    a = jax.vmap(lambda k: INITIALIZERS[spec.init](k, rows, spec.rank))(keys).reshape(*stack, rows, spec.rank)
    on = _layer_mask(stack, spec.layers)
    return LowRank(
        a=a * on[..., None, None],
        b=jnp.zeros((*stack, spec.rank, out), jnp.float32),
        scale=jnp.broadcast_to(on[..., None] * spec.effective_scale, (*stack, spec.rank)).astype(jnp.float32),
        dropout=jnp.full(stack, spec.dropout, jnp.float32) if spec.dropout else None,
        in_axes=in_axes,
    )


def _layer_mask(stack: tuple[int, ...], layers: tuple[int, ...] | None) -> Float[Array, "*stack"]:
    if layers is None:
        return jnp.ones(stack, jnp.float32)
    if not stack:
        raise ValueError(f"layers={layers} needs a site with a stack of layers, and this one has none. Select layers by path instead.")
    wrong = [index for index in layers if not 0 <= index < stack[0]]
    if wrong or not layers:
        raise ValueError(f"layers={layers} must name some of the layers 0 to {stack[0] - 1} of this stack; {wrong or 'none'} do not exist.")
    mask = jnp.zeros(stack[0], jnp.float32).at[jnp.asarray(layers)].set(1.0)
    return jnp.broadcast_to(mask.reshape(-1, *[1] * (len(stack) - 1)), stack)
