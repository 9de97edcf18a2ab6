"""How a task's model is built from the settings, and whether data and tokenizer fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lora_jax.config import DataConfig, ModelConfig
from lora_jax.core.host import can_offload


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
