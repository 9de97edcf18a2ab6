"""A language model's output head as an array of words, where it is one: neither adapted, nor
trained, nor quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lora_jax.kernels.frozen_head import Head, head_loss


class FrozenHead:
    """The loss of hidden states under the frozen head of `model`: what its `logits` and their
    softmax give, at less work and memory.
    """

    def __init__(self, words: Array, model: Any) -> None:
        self._words, self._scale = words, model.output_head.scale
        self._head = Head(model.output_head.axis, model.output_head.softcap)

    def loss(
        self,
        hidden: Float[Array, "tokens hidden"],
        labels: Int[Array, " tokens"],
        weight: Float[Array, " tokens"],
    ) -> tuple[Float[Array, ""], Float[Array, " tokens"], Float[Array, " tokens"]]:
        """See `kernels.frozen_head.head_loss`."""
        return head_loss(self._scaled(hidden), self._words, labels, weight, self._head)

    def _scaled(self, hidden: Array) -> Array:
        return hidden if self._scale == 1 else hidden * jnp.asarray(self._scale, hidden.dtype)


def frozen_head(
    model: Any, frozen: Mapping[str, Any], trainable: Mapping[str, Any]
) -> FrozenHead | None:
    """The head of `model` (which says in `output_head` where it is), or None where its logits must
    be asked of the model.
    """
    module, leaf = model.output_head[:2]
    words = frozen.get(module, {}).get(leaf)
    if not isinstance(words, (jax.Array, np.ndarray)) or any(
        path.startswith(f"{module}/") for path in trainable
    ):
        return None
    return FrozenHead(jnp.asarray(words), model)
