"""Trained modules beside a model's weights: bottleneck adapters, IA3's gains, prefix states.

Each rides through scans on the weight of the module that it acts on (a box with a module attached),
so no model is edited. They are no change of a weight, so they work with `lora_jax.apply` alone:
reading such a weight in any other way is an error.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from flax.core import meta
from jaxtyping import Array, Float

from lora_jax.core.boxes import Boxed, Wrapping
from lora_jax.core.trainable import Trainable

_READABLE: contextvars.ContextVar[bool] = contextvars.ContextVar("readable", default=False)


class AuxModule(Trainable, struct.PyTreeNode, repr=False):
    """A small trained module on the input or the output of the module whose weight carries it.

    `on`, where a kind has it, is 1 in the layers (*stack) that have one of their own, else 0.
    """

    kind = "module"
    on = None

    def label(self, field: str) -> str:
        """'module', for every array."""
        return "module"

    def decays(self, field: str) -> bool:
        """Its matrices do."""
        return field in ("down", "up")

    def active_parameters(self) -> int:
        """Number of trained entries, in layers that have one."""
        every = super().active_parameters()
        if self.on is None or not self.on.ndim:
            return every
        return int(every // self.on.size * float(self.on.sum()))

    def onto(self, base: Any, path: str, key: jax.Array | None = None) -> Boxed:
        """The weight, carrying this."""
        return WithAuxModule(base=base, aux=self)

    def before(self, x: Array) -> Array:
        """What the module gets in place of its input."""
        return x

    def after(self, y: Array) -> Array:
        """What the model gets in place of the module's output."""
        return y


class Bottleneck(AuxModule, repr=False):
    """`y + up(relu(down(y)))`, with a layer norm of its own before `down` if there is one; `up`
    starts at 0.

    `on` is 1 where a layer has it, else 0. Houlsby et al. 2019 (arXiv 1902.00751), figure 2; Bapna
    and Firat 2019 and Lin et al. 2020 for the norm.
    """

    down: Float[Array, "*stack d m"]
    down_bias: Float[Array, "*stack m"]
    up: Float[Array, "*stack m d"]
    up_bias: Float[Array, "*stack d"]
    norm_scale: Float[Array, "*stack d"] | None = None
    norm_bias: Float[Array, "*stack d"] | None = None
    on: Float[Array, "*stack"] | None = None
    kind = "bottleneck"

    def trained_fields(self) -> tuple[str, ...]:
        """Names of the arrays that are trained."""
        norm = () if self.norm_scale is None else ("norm_scale", "norm_bias")
        return ("down", "down_bias", "up", "up_bias", *norm)

    def after(self, y: Array) -> Array:
        """The output with the bottleneck's added."""
        x = y
        if self.norm_scale is not None:
            scale, bias = self.norm_scale.astype(y.dtype), self.norm_bias.astype(y.dtype)
            x = jax.nn.standardize(y, axis=-1, epsilon=1e-6) * scale + bias
        hidden = jax.nn.relu(x @ self.down.astype(y.dtype) + self.down_bias.astype(y.dtype))
        change = hidden @ self.up.astype(y.dtype) + self.up_bias.astype(y.dtype)
        return y + (change if self.on is None else change * self.on.astype(y.dtype))


class Gain(AuxModule, repr=False):
    """IA3's vector l, starting at 1: multiplies the output of keys and values, or the input of the
    last feed-forward product.

    Liu et al. 2022 (arXiv 2205.05638), section 3.3. The output's bias is multiplied, too, as in
    PEFT.
    """

    value: Float[Array, "*stack d"]
    where: Literal["input", "output"] = struct.field(pytree_node=False, default="output")
    kind = "gain"

    def before(self, x: Array) -> Array:
        """The input, multiplied if that is asked for."""
        return x * self.value.astype(x.dtype) if self.where == "input" else x

    def after(self, y: Array) -> Array:
        """The output, multiplied if that is asked for."""
        return y * self.value.astype(y.dtype) if self.where == "output" else y


class Prefix(AuxModule, repr=False):
    """Trained states in place of those at the inserted positions: `prefix` after the first token,
    `infix` at the end.

    Where `inserts` is set, `apply` makes room for them in the model's inputs. `on` is 1 where a
    layer's states are replaced. Hu et al. 2021 (LoRA, arXiv 2106.09685), section 5.1, after Li and
    Liang 2021.
    """

    value: Float[Array, "*stack inserted d"]
    on: Float[Array, "*stack"] | None = None
    prefix: int = struct.field(pytree_node=False, default=0)
    infix: int = struct.field(pytree_node=False, default=0)
    inserts: bool = struct.field(pytree_node=False, default=False)
    kind = "prefix"

    def after(self, y: Array) -> Array:
        """The output (batch, time, d) with its inserted positions replaced."""
        length = y.shape[-2]
        positions = jnp.asarray([*range(1, 1 + self.prefix), *range(length - self.infix, length)])
        new = y.at[..., positions, :].set(self.value.astype(y.dtype))
        return new if self.on is None else jnp.where(self.on > 0, new, y)

    def insert(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The model's inputs (tokens, mask, segment ids or None) with room for the inserted
        positions.
        """
        tokens, mask, *rest = args
        types = [None if x is None else self._widened(x, 0) for x in rest[:1]]
        return (self._widened(tokens, 0), self._widened(mask, True), *types, *rest[1:])

    def _widened(self, x: Array, fill: Any) -> Array:
        prefix, infix = (
            jnp.full((x.shape[0], count), fill, x.dtype) for count in (self.prefix, self.infix)
        )
        return jnp.concatenate([x[:, :1], prefix, x[:, 1:], infix], 1)


class WithAuxModule(Wrapping):
    """A weight, boxed or not, and the auxiliary module that acts on the module that reads it."""

    aux: Any

    def unbox(self) -> Array:
        """The weight, for the interceptor that applies the auxiliary module.

        Raises:
            ValueError: something else reads it, and would leave the auxiliary module out.
        """
        if not _READABLE.get():
            raise ValueError(
                f"This {self.shape} weight carries a trained {self.aux.kind}, which is no change "
                "of the weight: it cannot be merged or read as an array. Use "
                "lora_jax.apply(model, frozen, trainable, ...)."
            )
        return meta.unbox(self.base)


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Inside, weights that carry an auxiliary module may be read: the caller applies it."""
    token = _READABLE.set(True)
    try:
        yield
    finally:
        _READABLE.reset(token)
