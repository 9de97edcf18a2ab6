"""FLAN v2 as prompts and targets (Longpre et al. 2023), from the Hugging Face hub; capped, as the
whole is millions of records.

lora-jax train --config configs/tasks/flan.py
lora-jax evaluate RUN --generate

Results: not measured yet, the hub's files have to be downloaded.
"""

import ml_collections

from configs.common import gemma3


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 64, of Gemma-3-270M; another model with --config.model.name."""
    return gemma3(
        data=dict(
            name="hf:Muennighoff/flan",
            recipe="completion",
            fields=dict(prompt="inputs", completion="targets"),
            train_examples=50_000,
            metrics=("exact_match", "rouge_l"),
            on_error="skip",
            max_length=512,
        ),
        lora=dict(rank=64),
        optim=dict(schedule="constant"),
        train=dict(epochs=1.0, batch_size=16),
        out="runs/flan",
    )
