"""FLAN v2 as prompts and targets (Longpre et al. 2023), from the Hugging Face hub; capped, as the
whole is millions of records.

lora-jax train --config configs/tasks/flan.py
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
                name="hf:Muennighoff/flan",
                recipe="completion",
                fields=dict(prompt="inputs", completion="targets"),
                train_examples=50_000,
                metrics=("exact_match", "rouge_l"),
                on_error="skip",
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
            out="runs/flan",
        )
    )
