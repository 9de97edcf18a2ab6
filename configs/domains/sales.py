r"""Sales: do two offers describe the same product? MiniLM-L6, LoRA rank 8 against the head alone.

433 pairs of offers of web shops, 50 of them equal (a sample of WDC Products, Peeters & Bizer 2023),
as OpenAI's evals ship them (product-matching; MIT). So few equal pairs make wide intervals. With an
argument `public`: 77 intents of customers of a bank (mteb/banking77 on the hub; MIT).

lora-jax train --config configs/domains/sales.py
lora-jax train --config configs/domains/sales.py --config.method=head \
    --config.optim.learning_rate=1e-2
lora-jax evaluate RUN --against HEAD_RUN

| seed 0, 347 / 46 / 40 records (92.5 % of test unequal) | test F1 | accuracy | time |
|---|---|---|---|
| head alone, 88 steps | 0.000 (says No to all) | 0.925 | 183 s on 2 CPU cores shared with some 5 other jobs |
| LoRA | 0.000 (likewise) | 0.925 | 165 s, likewise |
| LoRA, rate 3e-3, 16 epochs | 0.000 (likewise) | 0.925 | 348 s, likewise |

A negative result: with 42 equal pairs to learn from, neither learns to say Yes (test loss 0.285,
0.274 and 0.279).
"""

import ml_collections

from configs.common import chosen, minilm


def get_config(data: str = "evals") -> ml_collections.ConfigDict:
    """The config on records that a package ships ('evals'), or on a public data set ('public')."""
    sets = {
        "evals": dict(
            name="evals-product-matching/zeroshot/samples.jsonl",
            recipe="classification",
            fields=dict(text="input.-1.content", label="ideal"),
            metrics=("f1", "matthews", "accuracy"),
            label_names=("No", "Yes"),
            max_length=128,
        ),
        "public": dict(
            name="hf:mteb/banking77",
            recipe="classification",
            fields=dict(label="label_text"),
            max_length=96,
        ),
    }
    return minilm(
        data=chosen(data, sets),
        train=dict(epochs=8.0, log_every=5),
        out=f"runs/domains/sales_{data}",
    )
