"""WebNLG 2020 (Castro Ferreira et al. 2020), triples to texts, English, through TFDS's GEM copy.

lora-jax train --config configs/tasks/webnlg.py
lora-jax evaluate RUN --generate

Scored by BLEU, METEOR (Java and the extra 'meteor'), chrF and TER; decoded as Hu et al. 2021 do it
(beam 10, length penalty 0.8, no repeated 4-grams). The paper used the 2017 release. Results: not
measured yet, TFDS has to download the data.
"""

import ml_collections

from configs.common import gemma3


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 8, of Gemma-3-270M; another model with --config.model.name."""
    return gemma3(
        data=dict(
            name="gem/web_nlg_en",
            recipe="table_to_text",
            fields=dict(table="input", text="target", references="references"),
            metrics=("lowercase_bleu", "meteor", "chrf", "ter"),
            decoding=dict(length_penalty=0.8, max_new=128),
            max_length=384,
        ),
        train=dict(epochs=5.0),
        out="runs/webnlg",
    )
