"""OpenAssistant conversations (Köpf et al. 2023) as QLoRA trains on them: the best-ranked 9,846
threads, from the Hugging Face hub. Apache-2.0.

lora-jax train --config configs/tasks/oasst1.py
lora-jax evaluate RUN

The whole thread stands in one column; what QLoRA's script does is kept: the prompt is empty but for
a newline, the loss counts every token (rank 64, alpha 16, 1,875 steps of 16, constant 2e-4).
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
                name="hf:timdettmers/openassistant-guanaco",
                recipe="completion",
                fields=dict(prompt="text", completion="text"),
                prompt="",
                completion="{completion}",
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
                total_steps=1875,
                batch_size=16,
                eval_batch_size=8,
                log_every=10,
                checkpoint_every=100,
            ),
            out="runs/oasst1",
        )
    )
