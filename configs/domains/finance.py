"""Finance: which persons, organisations and places does a sentence of a loan agreement name? QLoRA
of Gemma-3-270M.

1,164 sentences of SEC filings with their entities (Salinas Alvarado et al. 2015), as OpenAI's evals
ship them (ner_finance; MIT); 651 have none. With an argument `public`: sentiment of financial
tweets (zeroshot/twitter-financial-news-sentiment on the hub, MIT), MiniLM-L6.

lora-jax train --config configs/domains/finance.py
lora-jax evaluate RUN --against base --generate

Ours, seed 0, 30 steps in 272 s on 2 busy CPU cores, 122 held-out sentences (lora-jax evaluate RUN
--against base --generate):

| adapter less base, 95 % (paired bootstrap, p 0.001) | |
|---|---|
| nats a token | -4.188 [-4.714, -3.769], to 0.364 |
| words, teacher-forced | +0.579 [+0.512, +0.662], to 0.870 |
| exact match of what it writes | +0.516 [+0.426, +0.607] |
| SQuAD F1 of what it writes | +0.696 [+0.626, +0.767] |

The base does not know the form that is asked for. "none" is right for every second sentence: who
always says so matches half.
"""

import ml_collections


def get_config(data: str = "evals") -> ml_collections.ConfigDict:
    """The config on records that a package ships ('evals'), or on a public data set ('public')."""
    if data not in ("evals", "public"):
        raise ValueError(f"the argument must be evals or public, got {data!r}")
    if data == "public":
        return ml_collections.ConfigDict(
            dict(
                model=dict(name="minilm-l6", scan=False),
                data=dict(
                    name="hf:zeroshot/twitter-financial-news-sentiment",
                    recipe="classification",
                    max_length=96,
                ),
                method="lora",
                lora=dict(rank=8, alpha=16.0, targets="all-linear"),
                optim=dict(
                    learning_rate=1e-3, weight_decay=0.01, schedule="linear", warmup_fraction=0.06
                ),
                train=dict(epochs=3.0, batch_size=32, eval_batch_size=64),
                out="runs/domains/finance_public",
            )
        )
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gemma3-270m"),
            data=dict(
                task="completion",
                name="evals-ner-finance/samples.jsonl",
                recipe="completion",
                fields=dict(prompt="input.-1.content", completion="ideal"),
                prompt="{prompt}\nEntities:",
                metrics=("exact_match", "squad_f1"),
                decoding=dict(max_new=48, stop=("\n",)),
                max_length=128,
            ),
            method="qlora",
            lora=dict(rank=8, alpha=16.0, targets="all-linear"),
            quant=dict(format="nf4", block_size=64, double=True),
            optim=dict(
                learning_rate=1e-3,
                weight_decay=0.0,
                schedule="linear",
                warmup_fraction=0.1,
                clip_norm=1.0,
            ),
            train=dict(
                total_steps=30,
                batch_size=8,
                eval_batch_size=8,
                eval_examples=16,
                log_every=5,
                checkpoint_every=30,
            ),
            out="runs/domains/finance",
        )
    )
