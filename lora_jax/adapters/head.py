"""A language model's output head as an array of words, where it is one: neither adapted, nor
trained, nor quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lora_jax.core.mesh import Placed
from lora_jax.kernels.frozen_head import Head, head_loss


def frozen_head(
    model: Any, frozen: Mapping[str, Any], trainable: Mapping[str, Any]
) -> Callable[..., tuple[Array, Array, Array]] | None:
    """The loss of hidden states under the head of `model` (which says in `output_head` where it
    is): what its `logits` and their softmax give, at less work and memory; None where its logits
    must be asked of the model.

    Called with hidden states (tokens, hidden), labels and weights as `kernels.frozen_head.head_loss`.
    """
    module, leaf, axis, scale, softcap = model.output_head
    words = frozen.get(module, {}).get(leaf)
    cut = words.cut if isinstance(words, Placed) else None
    words = words.base if isinstance(words, Placed) else words
    if not isinstance(words, (jax.Array, np.ndarray)) or any(
        path.startswith(f"{module}/") for path in trainable
    ):
        return None

    def loss(hidden: Array, labels: Array, weight: Array) -> tuple[Array, Array, Array]:
        scaled = hidden if scale == 1 else hidden * jnp.asarray(scale, hidden.dtype)
        return head_loss(scaled, jnp.asarray(words), labels, weight, Head(axis, softcap), cut)

    return loss
