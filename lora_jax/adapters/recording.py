"""A box that measures the inputs of the product that reads it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.core.boxes import Wrapping

_TOKEN_WEIGHTS: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar(
    "token_weights", default=()
)


class Recorded(Wrapping):
    """A frozen weight whose product also records its input: the gradient of `probe` is the input's
    second moment, x^T x.

    A gradient goes wherever a weight goes, so this works under scan, remat and jit, layer by layer,
    with nothing to collect.
    """

    probe: Array

    def unbox(self) -> Array:
        """Refused: a module that reads the dense weight shows no input to record.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"The inputs of this {self.shape} weight cannot be measured: its module has no "
            "factored product."
        )


def record(x: Float[Array, "t in"], probe: Float[Array, "in in"]) -> Float[Array, "t in"]:
    """`x`; in the backward pass the gradient of `probe` is `x^T diag(w) x`, w the weights of
    `token_weights` (1 if none fits).
    """
    weights = next(
        (w.reshape(-1) for w in _TOKEN_WEIGHTS.get() if w.size == x.shape[0]),
        jnp.ones(x.shape[0], jnp.float32),
    )
    return _record(x, probe, weights)


@jax.custom_vjp
def _record(x: Array, probe: Array, weights: Array) -> Array:
    return x


def _record_forward(x: Array, probe: Array, weights: Array) -> tuple[Array, tuple[Array, Array]]:
    return x, (x, weights)


def _record_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array, None]:
    x, weights = saved
    wide = x.astype(jnp.float32)
    return g, (wide * weights[:, None]).T @ wide, None


_record.defvjp(_record_forward, _record_backward)


@contextlib.contextmanager
def token_weights(*weights: Array) -> Iterator[None]:
    """Inside, inputs are weighted (0 leaves padding out) by the array that has as many entries as a
    product has rows.
    """
    token = _TOKEN_WEIGHTS.set(weights)
    try:
        yield
    finally:
        _TOKEN_WEIGHTS.reset(token)
