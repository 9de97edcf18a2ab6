"""What a task is made of: its model's program and specs by the settings, its base by the files, and
whether data and tokenizer fit.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.config import Config, DataConfig, ModelConfig, QuantConfig, built
from lora_jax.core.host import StoredWeight, can_offload
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.paths import unflatten
from lora_jax.core.quantize import QuantSpec
from lora_jax.io.named_weights import dtype_of
from lora_jax.io.weights import StoredModel


def build_options(config: ModelConfig) -> dict[str, Any]:
    """How a model's program is built, as the arguments of Encoder, Decoder and T5."""
    return dict(
        scan=config.scan,
        remat=config.remat,
        offload=config.offload and can_offload(),
        dtype=jnp.dtype(config.compute_dtype).type,
    )


def check_sizes(
    folder: Path, words: int, settings: Any, model_config: ModelConfig, data: DataConfig
) -> None:
    """Nothing, if a model with these settings has room for the tokenizer's `words` and for
    `data.max_length` tokens.

    Raises:
        ValueError: it has not.
    """
    if words > settings.vocab_size:
        raise ValueError(
            f"The tokenizer in {folder} has {words} words and the model's embedding "
            f"{settings.vocab_size}: they do not belong together. Use the tokenizer that the model "
            "was trained with."
        )
    if data.max_length > settings.max_positions:
        raise ValueError(
            f"data.max_length is {data.max_length} tokens, and {model_config.name} has positions "
            f"for {settings.max_positions}. Lower it."
        )


def params_of(stored: StoredModel) -> dict[str, Any]:
    """The params as a tree of weights that are read when they are asked for; new ones are there."""
    flat: dict[str, Any] = {
        path: StoredWeight(
            (*name.stack, *name.shape),
            dtype_of(name, stored.dtype),
            functools.partial(stored.leaf, path),
        )
        for path, name in stored.names.items()
    }
    return unflatten(flat | dict(stored.new))


def shapes_of(params: Any) -> Any:
    """The tree with the shape and dtype of every weight in its place."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), params)


def quant_spec(config: Config) -> QuantSpec:
    """How the configuration stores the frozen base."""
    return built(QuantSpec, config.quant, without=("kernel",))


def lora_spec(config: Config) -> LoraSpec:
    """The adapter that the configuration asks for at each of its targets."""
    return built(LoraSpec, config.lora)


def unquantised(config: Config) -> Config:
    """The same run, its base taken as it is; for methods with adapters."""
    return replace(config, method="lora", quant=QuantConfig())
