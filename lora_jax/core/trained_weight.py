"""A weight that is trained itself: a head, a norm, everything in full fine-tuning."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float

from lora_jax.core.boxes import Boxed
from lora_jax.core.trainable import Trainable


class TrainedWeight(Trainable, Boxed, repr=False):
    """The weight (*stack, ...), and the box of itself: it stands in the frozen weight's place."""

    value: Float[Array, " ..."]
    kind = "whole"
    replaces = True

    def onto(self, base: Any, path: str, key: jax.Array | None = None) -> Boxed:
        """Itself; there is no base."""
        return self

    def unbox(self) -> jax.Array:
        """The array."""
        return self.value
