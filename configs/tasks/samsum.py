"""SAMSum (Gliwa et al. 2019), chats to summaries, from the Hugging Face hub.

lora-jax train --config configs/tasks/samsum.py
lora-jax evaluate RUN --generate

Scored by ROUGE-1, -2 and -L. Results: not measured yet, the hub's files have to be downloaded.
"""

import ml_collections

from configs.common import gemma3


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 8, of Gemma-3-270M; another model with --config.model.name."""
    return gemma3(
        data=dict(
            name="hf:knkarthick/samsum",
            recipe="summarisation",
            fields=dict(text="dialogue", summary="summary"),
            metrics=("rouge_l", "rouge_1", "rouge_2"),
            on_error="skip",  # one dialogue of the published training split is empty
            max_length=1024,
        ),
        train=dict(epochs=2.0),
        out="runs/samsum",
    )
