"""A two-layer classifier, a batch and a loss: the smallest thing that the training step can be
tested on.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lora_jax import LoraSpec, QuantSpec, adapt, apply
from lora_jax.config import OptimConfig
from lora_jax.tasks.losses import Sums, classification

IN, WIDE, CLASSES = 6, 8, 3


class Net(nn.Module):
    """x (batch, in) to logits (batch, classes)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.gelu(nn.Dense(WIDE, name="up")(x))
        return nn.Dense(CLASSES, name="head")(x + nn.Dense(WIDE, name="down")(x))


NET = Net()
# No clipping, no decay, and a constant rate unless a test asks for more.
PLAIN = OptimConfig(
    learning_rate=1e-2, weight_decay=0.0, schedule="constant", warmup_fraction=0.0, clip_norm=0.0
)


def make(
    spec: LoraSpec | None = None, quant: bool = False, whole: tuple[str, ...] = ("head/.*",)
) -> tuple[Any, Any]:
    """Frozen weights and the trained tree: factors on two layers, and the head whole."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(NET.init, jax.random.key(0), jnp.ones((1, IN)))["params"]
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape) / 2, x.dtype), shapes)
    rules = [("(up|down)/kernel", spec or LoraSpec(rank=2, alpha=4.0))]
    quants = [("(up|down)/kernel", QuantSpec("nf4", 2))] if quant else []
    return adapt(
        NET,
        params,
        (jnp.ones((1, IN)),),
        lora=rules,
        quant=quants,
        whole=whole,
        key=jax.random.key(1),
    )


def batch(rows: int = 8, seed: int = 0, weight: Any = None) -> dict[str, np.ndarray]:
    """Random inputs and labels; all rows count unless weights are given."""
    rng = np.random.default_rng(seed)
    weights = np.ones(rows, np.float32) if weight is None else np.asarray(weight, np.float32)
    return dict(
        x=rng.standard_normal((rows, IN)).astype(np.float32),
        labels=rng.integers(0, CLASSES, rows).astype(np.int32),
        weight=weights,
    )


def loss(frozen: Any, trainable: Any, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Sums]:
    """Summed cross-entropy of the net."""
    sums = classification(
        apply(NET, frozen, trainable, batch["x"], key=key), batch["labels"], batch["weight"]
    ).sums()
    return sums.loss, sums
