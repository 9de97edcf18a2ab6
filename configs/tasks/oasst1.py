"""OpenAssistant conversations (Köpf et al. 2023) as QLoRA trains on them: the best-ranked 9,846
threads, from the Hugging Face hub. Apache-2.0.

lora-jax train --config configs/tasks/oasst1.py
lora-jax evaluate RUN

The whole thread stands in one column; what QLoRA's script does is kept: the prompt is empty but for
a newline, the loss counts every token (rank 64, alpha 16, 1,875 steps of 16, constant 2e-4).
Results: not measured yet, the hub's files have to be downloaded.
"""

import ml_collections

from configs.common import gemma3


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 64, of Gemma-3-270M; another model with --config.model.name."""
    return gemma3(
        data=dict(
            name="hf:timdettmers/openassistant-guanaco",
            recipe="completion",
            fields=dict(prompt="text", completion="text"),
            prompt="",
            completion="{completion}",
            max_length=512,
        ),
        lora=dict(rank=64),
        optim=dict(schedule="constant"),
        train=dict(total_steps=1875, batch_size=16),
        out="runs/oasst1",
    )
