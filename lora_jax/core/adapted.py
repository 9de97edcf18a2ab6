"""The box of an adapted weight: what a module reads in place of the frozen one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Array, Float

from lora_jax.core.boxes import Wrapping
from lora_jax.core.matrix import from_matrix, to_matrix
from lora_jax.core.quantize import QuantizedArray
from lora_jax.core.rounded import straight_through


class Adapted(Wrapping):
    """`base + update`, its columns rescaled if there is a magnitude.

    `key` holds one random key a layer (*stack) for this site's dropout, or None outside training.
    """

    lora: Any  # A LowRank, or a Change (`lora_jax.core.changes`).
    key: jax.Array | None = None

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the weight without the stack axes."""
        return tuple(self.base.shape[self.lora.scale.ndim - 1 :])

    def base_matrix(self) -> Float[Array, "*stack in out"]:
        """The frozen weight as float32 matrices, dequantised if need be."""
        if isinstance(self.base, QuantizedArray) and self.base.in_axes == self.lora.in_axes:
            return self.base.matrix(self.dtype).astype(jnp.float32)
        base = meta.unbox(self.base)
        return to_matrix(base, len(self.kernel_shape), self.lora.in_axes).astype(jnp.float32)

    def frozen(self) -> Any:
        """What the module's own product multiplies with: the base, or where the update is rounded
        with it the rounded sum.
        """
        return self.lora.onto_rounded(self.base) if self.lora.rounded else self.base

    def update(self) -> Any:
        """The trained term whose product goes with that of `frozen`: what is added to it, or where
        that has it already what its gradient is of.
        """
        low = self.lora.moving()
        if not self.lora.rounded or self.lora.magnitude is None:
            return low
        factors = jax.lax.stop_gradient(self.lora.column_factors(self.base_matrix()))
        return low.replace(b=low.b * factors[..., None, :].astype(low.b.dtype))

    def factors(self) -> Float[Array, "*stack out"] | None:
        """What DoRA multiplies each output column by; None without a magnitude.

        A rounded sum has its magnitudes already: the factors are then 1, of the gradient that the
        outputs say.
        """
        magnitude = self.lora.magnitude
        if magnitude is None or not self.lora.rounded:
            return None if magnitude is None else self.lora.column_factors(self.base_matrix())
        held = jax.lax.stop_gradient(magnitude)
        used = (self.lora.scale != 0).any(-1)[..., None] & (held != 0)
        return jnp.where(used, magnitude / jnp.where(used, held, 1.0), 1.0)

    def unbox(self) -> Array:
        """The dense adapted weight: added up in float32, rounded once to the base's dtype."""
        matrix = self.matrix()
        return from_matrix(matrix, self.kernel_shape, self.lora.in_axes).astype(self.dtype)

    def matrix(self) -> Float[Array, "*stack in out"]:
        """The adapted weight as float32 matrices.

        Raises:
            ValueError: dropout is on, and the module reads the dense weight, which knows no input
                to drop.
        """
        if self.key is not None and self.lora.dropout is not None:
            raise ValueError(
                "LoRA dropout needs the factored product, and the module that reads this "
                f"{self.shape} weight has no rule for it. Set dropout=0.0 for this site, or use "
                "lora_jax.apply with a module kind that has a rule."
            )
        weight, factors = self.lora.changed(self.base_matrix()), self.factors()
        if self.lora.rounded:
            weight = straight_through(
                self.frozen().merged().matrix().astype(jnp.float32), self.update().delta()
            )
        return weight if factors is None else weight * factors[..., None, :]
