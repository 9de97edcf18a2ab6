"""Alpaca (Taori et al. 2023), 52,002 instructions with answers, from the Hugging Face hub. CC BY-NC
4.0.

lora-jax train --config configs/tasks/alpaca.py
lora-jax evaluate RUN --generate

Results: not measured yet, the hub's files have to be downloaded.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 64, of Gemma-3-270M; another model with --config.model.name."""
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gemma3-270m"),
            data=dict(
                task="completion",
                name="hf:tatsu-lab/alpaca",
                recipe="instruction",
                on_error="skip",  # a few published answers are empty
                max_length=512,
            ),
            method="qlora",
            lora=dict(rank=64, alpha=16.0, targets="all-linear"),
            quant=dict(format="nf4", block_size=64, double=True),
            optim=dict(
                learning_rate=2e-4,
                weight_decay=0.0,
                schedule="constant",
                warmup_fraction=0.03,
                clip_norm=0.3,
            ),
            train=dict(
                epochs=1.0, batch_size=16, eval_batch_size=8, log_every=10, checkpoint_every=100
            ),
            out="runs/alpaca",
        )
    )
