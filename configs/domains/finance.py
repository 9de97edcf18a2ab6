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

from configs.common import SHORT, chosen, gemma3, minilm


def get_config(data: str = "evals") -> ml_collections.ConfigDict:
    """The config on records that a package ships ('evals'), or on a public data set ('public')."""
    return chosen(data, {"evals": _evals, "public": _public})()


def _evals() -> ml_collections.ConfigDict:
    return gemma3(
        data=dict(
            name="evals-ner-finance/samples.jsonl",
            recipe="completion",
            fields=dict(prompt="input.-1.content", completion="ideal"),
            prompt="{prompt}\nEntities:",
            metrics=("exact_match", "squad_f1"),
            decoding=dict(max_new=48, stop=("\n",)),
            max_length=128,
        ),
        optim=SHORT,
        train=dict(total_steps=30, eval_examples=16, log_every=5, checkpoint_every=30),
        out="runs/domains/finance",
    )


def _public() -> ml_collections.ConfigDict:
    return minilm(
        data=dict(
            name="hf:zeroshot/twitter-financial-news-sentiment",
            recipe="classification",
            max_length=96,
        ),
        train=dict(epochs=3.0),
        out="runs/domains/finance_public",
    )
