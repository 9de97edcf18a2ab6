"""Cross-entropy over a large vocabulary, a chunk of tokens' logits and gradients at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lora_jax.kernels.counted import cotangent_of_sum, in_passes

CHUNK = 256  # tokens whose logits are alive at a time
LogitsFn = Callable[[Any, Any, Array], Array]  # frozen, trained, hidden (n, d) -> logits (n, vocab)


def vocabulary_loss(
    logits_fn: LogitsFn,
    frozen: Any,
    trained: Any,
    hidden: Float[Array, "tokens hidden"],
    labels: Int[Array, " tokens"],
    weight: Float[Array, " tokens"],
    chunk: int = CHUNK,
    smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, " tokens"], Float[Array, " tokens"]]:
    """The sum of weighted losses (nats), and each token's weighted loss and its weight if right.

    Logits are `logits_fn(frozen, trained, hidden)` in float32. A token whose label is not the
    likeliest word has 0 in the last.

    Tokens whose weight is 0 are gathered away first and cost nothing; the rest go through the head
    `chunk` at a time, so at most (chunk, vocab) logits are alive. The number of chunks is decided
    at run time. Under differentiation each chunk's gradient is formed together with its loss: the
    head is computed once, not again in the backward pass. Gradients are of `trained` and `hidden`,
    and flow from the sum only; `frozen` has none.

    Args:
        logits_fn: a pure function of its arguments that closes over no arrays.
        smoothing: the share of a label's weight that all words have in common.
    """
    frozen_leaves, frozen_tree = jax.tree.flatten(frozen)
    trained_leaves, trained_tree = jax.tree.flatten(trained)

    def run(frozen: list[Array], trained: list[Array], h: Array) -> Array:
        return logits_fn(
            jax.tree.unflatten(frozen_tree, frozen), jax.tree.unflatten(trained_tree, trained), h
        )

    # Plain leaves cross the custom rule: its placeholders would be refused by checked containers.
    return _loss(run, frozen_leaves, trained_leaves, hidden, labels, weight, chunk, smoothing)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 6, 7))
def _loss(
    logits_fn: LogitsFn,
    frozen: list[Any],
    trained: list[Any],
    hidden: Array,
    labels: Array,
    weight: Array,
    chunk: int,
    smoothing: float,
) -> tuple[Array, Array, Array]:
    arrays = (frozen, trained, hidden, labels, weight)
    return _chunks(logits_fn, *arrays, chunk, smoothing, gradient=False)[:3]


def _forward(
    logits_fn: LogitsFn,
    frozen: Any,
    trained: Any,
    hidden: Any,
    labels: Any,
    weight: Any,
    chunk: int,
    smoothing: float,
) -> tuple[tuple[Array, Array, Array], tuple[Any, Array]]:
    # Each array comes with whether it is differentiated.
    arrays = jax.tree.map(
        lambda one: one.value,
        (frozen, trained, hidden, labels, weight),
        is_leaf=lambda one: hasattr(one, "perturbed"),
    )
    *out, gradients = _chunks(logits_fn, *arrays, chunk, smoothing, gradient=True)
    return tuple(out), gradients


def _backward(
    logits_fn: LogitsFn,
    chunk: int,
    smoothing: float,
    saved: tuple[Any, Array],
    g: tuple[Any, ...],
) -> tuple[Any, ...]:
    scale = cotangent_of_sum(g)
    d_trained, d_hidden = jax.tree.map(lambda x: x * scale.astype(x.dtype), saved)
    return None, d_trained, d_hidden, None, None


_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _chunks(
    logits_fn: LogitsFn,
    frozen: Any,
    trained: Any,
    hidden: Array,
    labels: Array,
    weight: Array,
    chunk: int,
    smoothing: float,
    *,
    gradient: bool,
) -> tuple[Array, Array, Array, Any]:
    def head(trained: Any, h: Array) -> Array:
        return logits_fn(frozen, trained, h).astype(jnp.float32)

    def each(gathered: Any, rows: Array, w: Array, h: Array, label: Array) -> Any:
        logits, pull = jax.vjp(head, trained, h) if gradient else (head(trained, h), None)
        normaliser = jax.nn.logsumexp(logits, -1)
        if pull is not None:
            # Written out, so that it may stand where the logits stood; autodiff keeps their
            # exponential beside them, and its chunks could be half as long.
            is_label = jnp.arange(logits.shape[-1], dtype=jnp.int32) == label[:, None]
            wanted = _smoothed(is_label, smoothing)
            dt, dh = pull((jnp.exp(logits - normaliser[:, None]) - wanted) * w[:, None])
            d_trained, d_hidden = gathered
            gathered = jax.tree.map(jnp.add, d_trained, dt), d_hidden.at[rows].set(dh, mode="drop")

        picked = jnp.take_along_axis(logits, label[:, None], -1)[:, 0]
        if smoothing:
            picked = (1 - smoothing) * picked + smoothing * logits.mean(-1)
        return normaliser - picked, likeliest(logits) == label, gathered

    empty = jax.tree.map(jnp.zeros_like, (trained, hidden)) if gradient else None
    return in_passes((chunk,), weight, (hidden, labels), each, empty)


def _smoothed(is_label: Array, smoothing: float) -> Array:
    """The distribution that a loss asks for: the label's, or mixed with the even one."""
    if not smoothing:
        return is_label
    return (1 - smoothing) * is_label + smoothing / is_label.shape[-1]


def likeliest(logits: Float[Array, "batch vocab"]) -> Int[Array, " batch"]:
    """The first of the largest logits, as `argmax` has it (a NaN counts as the largest).

    Two plain reductions: XLA's argmax on a CPU does one element at a time, four times as long over
    262,144 words, and a tenth of this loss.
    """
    index = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    largest = (logits == logits.max(-1, keepdims=True)) | jnp.isnan(logits)
    return jnp.where(largest, index, logits.shape[-1]).min(-1)
