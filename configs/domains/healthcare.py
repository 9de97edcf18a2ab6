r"""Healthcare: does a patient with these findings have a heart disease? MiniLM-L6, LoRA rank 8
against the head alone.

918 patients of five hospitals, findings as a sentence (the UCI heart disease data as joined by
Soriano Palacios 2021), as OpenAI's evals ship them (heart-disease; MIT). A benchmark of text models
on numbers: no medical device. With an argument `public`: questions of the US medical licence
(GBaker/MedQA-USMLE-4-options on the hub, MIT), multiple choice.

lora-jax train --config configs/domains/healthcare.py
lora-jax train --config configs/domains/healthcare.py --config.method=head \
    --config.optim.learning_rate=1e-2
lora-jax evaluate RUN --against HEAD_RUN

| seed 0, 728 / 96 / 94 records | test accuracy | F1 | Matthews | time |
|---|---|---|---|---|
| head alone, 92 steps | 0.787 | 0.811 | 0.570 | 169 s on 2 CPU cores shared with some 5 other jobs |
| LoRA | 0.904 | 0.909 | 0.810 | 192 s, likewise |
| LoRA less head, 95 % (paired bootstrap) | +0.117 [+0.043, +0.191] | +0.098 [+0.026, +0.176] | +0.239 [+0.090, +0.391] | McNemar p 0.007 |
"""

import ml_collections

from configs.common import chosen, minilm


def get_config(data: str = "evals") -> ml_collections.ConfigDict:
    """The config on records that a package ships ('evals'), or on a public data set ('public')."""
    sets = {
        "evals": dict(
            name="evals-heart-disease/samples.jsonl",
            recipe="classification",
            fields=dict(text="input.-1.content", label="ideal"),
            metrics=("accuracy", "f1", "matthews"),
            max_length=128,
        ),
        "public": dict(
            name="hf:GBaker/MedQA-USMLE-4-options",
            recipe="multiple_choice",
            fields=dict(question="question", choices="options", answer="answer_idx"),
            max_length=384,
        ),
    }
    return minilm(
        data=chosen(data, sets),
        train=dict(epochs=4.0, log_every=5),
        out=f"runs/domains/healthcare_{data}",
    )
