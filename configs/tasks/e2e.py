"""E2E NLG (Novikova et al. 2017), meaning representations to texts, through TFDS's GEM copy:
several references a meaning.

lora-jax train --config configs/tasks/e2e.py
lora-jax evaluate RUN --generate

Scored as the E2E challenge's scorer does (BLEU, NIST, METEOR, ROUGE-L, CIDEr; METEOR needs Java and
the extra 'meteor') and decoded as Hu et al. 2021 do it (beam 10, length penalty 0.9, no repeated
4-grams). Results: not measured yet, TFDS has to download the data.
"""

import ml_collections

from configs.common import gemma3


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 8, of Gemma-3-270M; another model with --config.model.name."""
    return gemma3(
        data=dict(
            name="gem/e2e_nlg",
            recipe="table_to_text",
            fields=dict(table="meaning_representation", text="target", references="references"),
            metrics=("lowercase_bleu", "nist", "meteor", "coco_rouge_l", "cider"),
            max_length=256,
        ),
        train=dict(epochs=5.0),
        out="runs/e2e",
    )
