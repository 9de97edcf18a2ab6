"""Attention for every model: one function, computed by XLA or by cuDNN's flash attention."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lora_jax.core.notice import say_once
from lora_jax.core.platform import platform

CHOICE = "LORA_JAX_ATTENTION"  # environment: auto, xla or cudnn
# Added to scores; not infinity, so that a query that sees nothing stays finite.
HIDDEN = float(jnp.finfo(jnp.float32).min) / 2


def attend(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv dim"],
    v: Float[Array, "batch keys kv dim"],
    *,
    scale: float,
    bias: Float[Array, "#batch #heads #queries keys"] | None = None,
    mask: Bool[Array, "batch queries keys"] | None = None,
    softcap: float | None = None,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "batch queries heads dim"]:
    """`softmax(softcap(q kᵀ * scale) + bias) v`, head by head; scores and softmax in float32, the
    rest in q's dtype.

    Several query heads may share a key and value head (grouped-query attention, Ainslie et al.
    2023): kv divides heads. `mask` is True where a query sees a key. A softcap is `cap * tanh(x /
    cap)`. `drop` is what dropout makes of the weights.

    On an NVIDIA GPU in bfloat16 or float16, cuDNN's flash attention computes it where it can;
    otherwise XLA does, and why is printed once. The environment variable LORA_JAX_ATTENTION (auto,
    xla, cudnn) asks for one of them; cudnn cannot be had on a CPU.
    """
    asked = dict(masked=mask is not None, biased=bias is not None, softcap=softcap)
    if chosen(q, k, **asked, dropped=drop is not None) == "cudnn":
        return _flash(q, k, v, bias, mask, scale)

    batch, queries, heads, dim = q.shape
    kv = k.shape[2]
    q = q * jnp.asarray(scale, q.dtype)
    grouped = kv != heads
    if grouped:
        q = q.reshape(batch, queries, kv, heads // kv, dim)
    scores = jnp.einsum(
        "bqhgd,bkhd->bhgqk" if grouped else "bqhd,bkhd->bhqk",
        q,
        k.astype(q.dtype),
        preferred_element_type=jnp.float32,
    )
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + (
            bias.reshape(*bias.shape[:1], kv if bias.shape[1] > 1 else 1, -1, *bias.shape[2:])
            if grouped
            else bias
        )
    if mask is not None:
        scores = jnp.where(mask[:, None, None] if grouped else mask[:, None], scores, HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    weights = weights if drop is None else drop(weights)
    y = jnp.einsum(
        "bhgqk,bkhd->bqhgd" if grouped else "bhqk,bkhd->bqhd", weights, v.astype(q.dtype)
    )
    return y.reshape(batch, queries, heads, dim)


def chosen(
    q: Any, k: Any, *, masked: bool, biased: bool, softcap: float | None, dropped: bool = False
) -> str:
    """'cudnn' or 'xla', for queries and keys of these shapes."""
    wanted = os.environ.get(CHOICE, "auto")
    if wanted not in ("auto", "xla", "cudnn"):
        raise ValueError(f"{CHOICE} must be auto, xla or cudnn, got {wanted!r}.")
    here = platform()
    if wanted == "xla" or (wanted == "auto" and here != "gpu"):
        return "xla"
    asked = (masked, biased, softcap, dropped)
    why = _why_not_flash(here, q.shape, k.shape, q.dtype, *asked)
    if why is not None:
        say_once(f"attention is computed by XLA, not by cuDNN: {why}")
    return "xla" if why is not None else "cudnn"


@functools.cache
def _why_not_flash(
    here: str,
    q: Any,
    k: Any,
    dtype: Any,
    masked: bool,
    biased: bool,
    softcap: float | None,
    dropped: bool,
) -> str | None:
    if here != "gpu":
        return f"the backend is {here!r}, not 'gpu'."
    if dropped:
        return "its dropout is none that jax gives."
    if softcap is not None:
        return "it has no soft-capped scores."
    shape = lambda *sizes, of=dtype: jax.ShapeDtypeStruct(sizes, of)
    bias = shape(q[0], 1, q[1], k[1]) if biased else None
    mask = shape(q[0], q[1], k[1], of=jnp.bool_) if masked else None
    forward = lambda q, k, v, bias, mask: jax.vjp(
        lambda q, k, v: _flash(q, k, v, bias, mask, 1.0), q, k, v
    )[0]
    # It knows its own limits: dtypes, head sizes by architecture, odd lengths with a mask. The
    # gradient's are narrower.
    try:
        jax.eval_shape(forward, shape(*q), shape(*k), shape(*k), bias, mask)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error)
    return None


def _flash(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, scale: float
) -> Array:
    queries, keys = q.shape[1], k.shape[1]
    if bias is not None:
        # It takes biases of q's dtype and full size; a large negative one must stay so in float16.
        bias = jnp.maximum(bias, float(jnp.finfo(q.dtype).min) / 2).astype(q.dtype)
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], queries, keys))
    mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(
        q, k.astype(q.dtype), v.astype(q.dtype), bias, mask, scale=scale, implementation="cudnn"
    )
