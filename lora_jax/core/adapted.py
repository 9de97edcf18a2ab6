"""The box of an adapted weight: its base, quantised or not, plus a low-rank update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Array, Float

from lora_jax.core.boxes import Wrapping
from lora_jax.core.dora import column_factors
from lora_jax.core.lowrank import LowRank
from lora_jax.core.matrix import from_matrix, to_matrix
from lora_jax.core.quantize import QuantizedArray


class Adapted(Wrapping):
    """`base + update`, its columns rescaled if there is a magnitude.

    `key` holds one random key a layer (*stack) for this site's dropout, or None outside training.
    """

    lora: LowRank
    key: jax.Array | None = None

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the weight without the stack axes."""
        return tuple(self.base.shape[self.lora.a.ndim - 2 :])

    def base_matrix(self) -> Float[Array, "*stack in out"]:
        """The frozen weight as float32 matrices, dequantised if need be."""
        if isinstance(self.base, QuantizedArray) and self.base.in_axes == self.lora.in_axes:
            return self.base.matrix(self.dtype).astype(jnp.float32)
        base = meta.unbox(self.base)
        return to_matrix(base, len(self.kernel_shape), self.lora.in_axes).astype(jnp.float32)

    def factors(self) -> Float[Array, "*stack out"] | None:
        """What DoRA multiplies each output column by; None without a magnitude."""
        return (
            None if self.lora.magnitude is None else column_factors(self.base_matrix(), self.lora)
        )

    def unbox(self) -> Array:
        """The dense adapted weight: added up in float32, rounded once to the base's dtype.

        Raises:
            ValueError: dropout is on, and the module reads the dense weight, which knows no input
                to drop.
        """
        if self.key is not None and self.lora.dropout is not None:
            raise ValueError(
                "LoRA dropout needs the factored product, and the module that reads this "
                f"{self.shape} weight has no rule for "
                "it. Set dropout=0.0 for this site, or use lora_jax.apply with a module kind that "
                "has a rule."
            )
        weight = self.base_matrix() + self.lora.delta()
        factors = self.factors()
        weight = weight if factors is None else weight * factors[..., None, :]
        return from_matrix(weight, self.kernel_shape, self.lora.in_axes).astype(self.dtype)
