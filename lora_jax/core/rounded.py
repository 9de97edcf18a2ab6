"""The weight that merging an adapter into its quantised base gives, computed alike by every program.

Merge-aware training multiplies with it from the first step, so that merging afterwards changes
nothing. That holds to the last bit only if a training step, an evaluation and the merge agree on
each weight that lies between two levels, and compilers add in what order they like and fuse a
product with a sum. So nothing here depends on either: factors are taken on a grid on which their
products add up without rounding, and no sum follows a product directly.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from lora_jax.core.boxes import Wrapping
from lora_jax.core.order import unfused
from lora_jax.core.quantize import QuantizedArray

SCALES = ("kept", "refitted")
# Factors on a grid of 2**-9 of their largest: 64 products of two have 24 bits, what float32 adds
# without rounding. The update is off by a thousandth of itself, a level by a tenth of the weight.
_BITS, _ADDED = 9, 64


class RoundedSum(Wrapping):
    """A quantised weight plus an update, quantised again: `Q(deq(base) + sum of a @ b)`.

    terms: factors ((*stack, in, r), (*stack, r, out)) whose products are added.
    used: matrices of the stack that are adapted; the others stay as they are stored.
    magnitude: DoRA's length of each output column of the sum, before it is rounded.
    scales: of the base's blocks: 'kept' as stored, so that codes alone change and an update of 0
        changes nothing, or 'refitted' to the sum.
    """

    base: QuantizedArray
    terms: tuple[tuple[Array, Array], ...]
    used: Bool[Array, "*stack"]
    magnitude: Float[Array, "*stack out"] | None = None
    scales: str = struct.field(pytree_node=False, default="kept")

    def merged(self) -> QuantizedArray:
        """The merged weight in the base's format, of the same bytes in every program."""
        total = unfused(self.base.matrix(jnp.float32))
        update = sum(exact_product(a, b) for a, b in self.terms)
        # As buffers: unpacking within the search for new codes takes five times as long.
        total = _there(total + update)
        if self.magnitude is not None:
            total = total * self._factors(total)[..., None, :]
        new = self.base.recoded(total, refit=self.scales == "refitted")

        def chosen(new: Array, old: Array) -> Array:
            lead = self.used.shape
            return jnp.where(self.used.reshape(*lead, *[1] * (new.ndim - len(lead))), new, old)

        new = jax.tree.map(chosen, new, self.base)
        return new.replace(codes=_there(new.codes))

    def unbox(self) -> Array:
        """The merged weight, dequantised."""
        return self.merged().unbox()

    def _factors(self, total: Float[Array, "*stack in out"]) -> Float[Array, "*stack out"]:
        norm = jnp.sqrt(_column_sums(unfused(total * total)))
        return jnp.where(norm > 0, self.magnitude / jnp.where(norm > 0, norm, 1.0), 1.0)


def exact_product(
    a: Float[Array, "*stack in r"], b: Float[Array, "*stack r out"]
) -> Float[Array, "*stack in out"]:
    """`a @ b` of factors that are rounded first, each column of `a` and all of `b` to 9 bits of its
    largest: the same float32 numbers in whatever order they are added.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    high = _exponent(jnp.abs(a).max(-2, keepdims=True))
    a = jnp.round(a * _two_to(_BITS - high))
    b = b * jnp.swapaxes(_two_to(high), -1, -2)
    top = _exponent(jnp.abs(b).max((-2, -1), keepdims=True))
    b = jnp.round(b * _two_to(_BITS - top))

    unit, total = _two_to(top - 2 * _BITS), None
    for first in range(0, a.shape[-1], _ADDED):
        some = slice(first, first + _ADDED)
        part = jnp.matmul(a[..., some], b[..., some, :], precision=jax.lax.Precision.HIGHEST)
        total = part * unit if total is None else total + part * unit
    return total


@jax.custom_vjp
def straight_through(y: Array, before: Array) -> Array:
    """`y`, with its gradient also that of `before`: what `y` was before it was rounded."""
    return y


straight_through.defvjp(lambda y, before: (y, None), lambda _, g: (g, g))


def _there(x: Array) -> Array:
    """`x`, as a buffer: a branch is a border of XLA's fusions. No number has 128 bits."""
    first = x[(0,) * x.ndim]
    bits = jax.lax.bitcast_convert_type(first, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return jax.lax.cond(jax.lax.population_count(bits) < 128, lambda x: x, jnp.zeros_like, x)


def _exponent(x: Array) -> Array:
    """The smallest e with x < 2**e."""
    return jnp.clip(jnp.frexp(x)[1], -100, 100)


def _two_to(exponent: Array) -> Array:
    # By its bits: exactly a power of two, which exp2 does not promise.
    biased = jnp.clip(exponent + 127, 1, 254).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(biased << 23, jnp.float32)


def _column_sums(x: Float[Array, "*stack in out"]) -> Float[Array, "*stack out"]:
    """Sums along the inputs, half to half: in an order of their own, where a reduction has none."""
    while (rows := x.shape[-2]) > 1:
        half = rows // 2
        rest = x[..., 2 * half :, :]
        x = x[..., :half, :] + x[..., half : 2 * half, :]
        x = jnp.concatenate([x, rest], -2) if rows % 2 else x
    return x[..., 0, :]
