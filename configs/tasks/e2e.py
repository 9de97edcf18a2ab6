"""E2E NLG (Novikova et al. 2017), meaning representations to texts, through TFDS's GEM copy:
several references a meaning.

lora-jax train --config configs/tasks/e2e.py
lora-jax evaluate RUN --generate

Scored as the E2E challenge's scorer does (BLEU, NIST, METEOR, ROUGE-L, CIDEr; METEOR needs Java and
the extra 'meteor') and decoded as Hu et al. 2021 do it (beam 10, length penalty 0.9, no repeated
4-grams). Results: not measured yet, TFDS has to download the data.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 8, of Gemma-3-270M; another model with --config.model.name."""
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gemma3-270m"),
            data=dict(
                task="completion",
                name="gem/e2e_nlg",
                recipe="table_to_text",
                fields=dict(table="meaning_representation", text="target", references="references"),
                metrics=("lowercase_bleu", "nist", "meteor", "coco_rouge_l", "cider"),
                max_length=256,
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
            out="runs/e2e",
        )
    )
