"""The box of an adapted weight: its base, quantised or not, plus a low-rank update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Array

from lora_jax.core.boxes import Boxed
from lora_jax.core.lowrank import LowRank
from lora_jax.core.matrix import from_matrix, to_matrix


class Adapted(Boxed):
    """`base + (a * scale) @ b`. `key` holds one random key a layer (*stack) for this site's dropout, or None outside training."""

    base: Any
    lora: LowRank
    key: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, stack axes first."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the weight."""
        return self.base.dtype

    def unbox(self) -> Array:
        """The dense adapted weight: added up in float32, rounded once to the base's dtype.

        Raises:
            ValueError: dropout is on, and the module reads the dense weight, which knows no input to drop.
        """
        if self.key is not None and self.lora.dropout is not None:
            raise ValueError(
                f"LoRA dropout needs the factored product, and the module that reads this {self.shape} weight has no rule for "
                "it. Set dropout=0.0 for this site, or use lora_jax.apply with a module kind that has a rule."
            )
        base = meta.unbox(self.base)
        delta = self.lora.delta()
        update = from_matrix(delta, base.shape[delta.ndim - 2 :], self.lora.in_axes)
        if self.lora.magnitude is None:
            return (base.astype(jnp.float32) + update).astype(base.dtype)
        used = jnp.any(self.lora.scale != 0, axis=-1)[..., None, None]
        whole = to_matrix((base.astype(jnp.float32) + update), base.ndim - delta.ndim + 2, self.lora.in_axes)
        # The norm is a constant to the gradient: DoRA (Liu et al. 2024), section 4.3.
        norm = jax.lax.stop_gradient(jnp.linalg.norm(whole, axis=-2, keepdims=True))
        whole = jnp.where(used, self.lora.magnitude[..., None, :] / jnp.where(norm > 0, norm, 1.0), 1.0) * whole
        return from_matrix(whole, base.shape[delta.ndim - 2 :], self.lora.in_axes).astype(base.dtype)
