"""SAMSum (Gliwa et al. 2019), chats to summaries, from the Hugging Face hub.

lora-jax train --config configs/tasks/samsum.py
lora-jax evaluate RUN --generate

Scored by ROUGE-1, -2 and -L. Results: not measured yet, the hub's files have to be downloaded.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 8, of Gemma-3-270M; another model with --config.model.name."""
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gemma3-270m"),
            data=dict(
                task="completion",
                name="hf:knkarthick/samsum",
                recipe="summarisation",
                fields=dict(text="dialogue", summary="summary"),
                metrics=("rouge_l", "rouge_1", "rouge_2"),
                on_error="skip",  # one dialogue of the published training split is empty
                max_length=1024,
            ),
            method="qlora",
            lora=dict(rank=8, alpha=16.0, targets="all-linear"),
            quant=dict(format="nf4", block_size=64, double=True),
            optim=dict(
                learning_rate=2e-4,
                weight_decay=0.0,
                schedule="linear",
                warmup_fraction=0.03,
                clip_norm=0.3,
            ),
            train=dict(
                epochs=2.0, batch_size=8, eval_batch_size=8, log_every=10, checkpoint_every=100
            ),
            out="runs/samsum",
        )
    )
