"""DART (Nan et al. 2021), open-domain triples to texts, through TFDS's GEM copy.

lora-jax train --config configs/tasks/dart.py
lora-jax evaluate RUN --generate

Scored by BLEU, METEOR (Java and the extra 'meteor') and TER; decoded as Hu et al. 2021 do it (beam
10, length penalty 0.8, no repeated 4-grams).
Results: not measured yet, TFDS has to download the data.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 8, of Gemma-3-270M; another model with --config.model.name."""
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gemma3-270m"),
            data=dict(
                task="completion",
                name="gem/dart",
                recipe="table_to_text",
                fields=dict(table="tripleset", text="target", references="references"),
                metrics=("lowercase_bleu", "meteor", "ter"),
                decoding=dict(length_penalty=0.8, max_new=128),
                max_length=384,
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
                epochs=5.0, batch_size=8, eval_batch_size=8, log_every=10, checkpoint_every=100
            ),
            out="runs/dart",
        )
    )
