"""A user's program, checked by `mypy --strict` and never run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax  # type: ignore[import-untyped]
from flax import linen as nn

import lora_jax
from lora_jax import LoraSpec, QuantSpec
from lora_jax.config import OptimConfig
from lora_jax.core import LowRank
from lora_jax.io import Name, decoder_names
from lora_jax.models import Decoder, DecoderConfig
from lora_jax.training import TrainState


def train(model: nn.Module, params: Mapping[str, Any], x: jax.Array, folder: Path) -> TrainState:
    """Adapts, trains with plain optax, saves."""
    frozen, trainable = lora_jax.adapt(
        model,
        params,
        (x,),
        lora=[("up/kernel", LoraSpec(rank=4))],
        quant=[(".*", QuantSpec("nf4"))],
        key=jax.random.key(1),
    )

    def loss(frozen: Any, trainable: Any, batch: jax.Array, key: jax.Array | None) -> jax.Array:
        y: jax.Array = lora_jax.apply(model, frozen, trainable, batch)
        return (y**2).mean()

    tx = optax.adamw(1e-3)
    state: TrainState = lora_jax.create_state(trainable, tx, jax.random.key(0))
    step = jax.jit(lora_jax.make_train_step(loss, tx))
    state, metrics = step(state, frozen, x)
    lora_jax.save_adapter(folder, state.trainable, base=lora_jax.fingerprint(frozen), model="mine")
    return state


def names(config: DecoderConfig) -> dict[str, Name]:
    """The names of a decoder's tensors."""
    return decoder_names(config)


rate: float = OptimConfig().learning_rate
sizes: int = lora_jax.bytes_of({"a": LowRank})
decoder: type[nn.Module] = Decoder
