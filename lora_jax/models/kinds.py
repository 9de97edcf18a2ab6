"""Which module a configuration is of, what it reads, and the shapes of its weights."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from lora_jax.models.decoder import Decoder
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.models.encoder import Encoder
from lora_jax.models.encoder_parts import EncoderConfig
from lora_jax.models.t5 import T5, T5Config

ModelConfig = EncoderConfig | DecoderConfig | T5Config


def model_of(config: ModelConfig, **options: Any) -> nn.Module:
    """The module of a configuration; `options` are those that all models have: scan, remat, dtype,
    offload.
    """
    if isinstance(config, EncoderConfig):
        return Encoder(config, **options)
    return (T5 if isinstance(config, T5Config) else Decoder)(config, **options)


def example_inputs(config: ModelConfig, length: int = 8) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of what the module of a configuration is called with.

    An encoder reads tokens, a mask and segment ids; a decoder tokens; an encoder-decoder tokens and
    segments of its source, and of its target.
    """
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    if isinstance(config, EncoderConfig):
        return tokens, jax.ShapeDtypeStruct(tokens.shape, jnp.bool_), tokens
    return (tokens,) * (4 if isinstance(config, T5Config) else 1)


@functools.lru_cache(maxsize=128)
def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every weight by its path, layers stacked; nothing is computed."""
    inputs = example_inputs(config, length=2)
    tree = jax.eval_shape(model_of(config).init, jax.random.key(0), *inputs)["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}
