"""Alpaca (Taori et al. 2023), 52,002 instructions with answers, from the Hugging Face hub. CC BY-NC
4.0.

lora-jax train --config configs/tasks/alpaca.py
lora-jax evaluate RUN --generate

Results: not measured yet, the hub's files have to be downloaded.
"""

import ml_collections

from configs.common import gemma3


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 64, of Gemma-3-270M; another model with --config.model.name."""
    return gemma3(
        data=dict(
            name="hf:tatsu-lab/alpaca",
            recipe="instruction",
            on_error="skip",  # a few published answers are empty
            max_length=512,
        ),
        lora=dict(rank=64),
        optim=dict(schedule="constant"),
        train=dict(epochs=1.0, batch_size=16),
        out="runs/alpaca",
    )
