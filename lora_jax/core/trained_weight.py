"""A weight that is trained itself."""

from __future__ import annotations

from typing import Any

import jax

from lora_jax.core.boxes import Boxed


class TrainedWeight(Boxed):
    """A weight that is trained whole (a head, a norm, everything in full fine-tuning)."""

    value: Any

    def unbox(self) -> jax.Array:
        """The array."""
        return self.value

    def trained_fields(self) -> tuple[str, ...]:
        """Names of the arrays that are trained."""
        return ("value",)

    def active_parameters(self) -> int:
        """Number of trained entries."""
        return self.value.size
