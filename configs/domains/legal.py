r"""Legal: to which field of law does a Brazilian bill belong? MiniLM-L6, LoRA rank 8 against the
head alone.

1,000 summaries of bills with their subjects (open data of the Câmara dos Deputados), as OpenAI's
evals ship them (brazilian_laws; MIT). Bills with several subjects are left out and counted, as are
the few held-out ones whose only subject training never saw. The model was pretrained on English:
what it learns of Portuguese, it learns here. With an argument `public`: clauses of contracts to
their 100 kinds (coastalcph/lex_glue, ledgar, on the hub; CC BY 4.0).

lora-jax train --config configs/domains/legal.py
lora-jax train --config configs/domains/legal.py --config.method=head \
    --config.optim.learning_rate=1e-2
lora-jax evaluate RUN --against HEAD_RUN

| seed 0, 488 / 66 / 57 records (389 with several subjects left out) | test accuracy | macro F1 | Matthews | time |
|---|---|---|---|---|
| head alone, 128 steps | 0.333 | 0.136 | 0.304 | 192 s on 2 CPU cores shared with some 5 other jobs |
| LoRA | 0.491 | 0.291 | 0.459 | 228 s, likewise |
| LoRA less head, 95 % (paired bootstrap) | +0.158 [+0.035, +0.281] | +0.154 [+0.042, +0.253] | +0.155 [+0.024, +0.294] | McNemar p 0.035 |
"""

import ml_collections

from configs.common import chosen, minilm


def get_config(data: str = "evals") -> ml_collections.ConfigDict:
    """The config on records that a package ships ('evals'), or on a public data set ('public')."""
    sets = {
        "evals": dict(
            name="evals-brazilian-laws/samples.jsonl",
            recipe="classification",
            fields=dict(text="input.-1.content", label="ideal"),
            on_error="skip",
            max_length=128,
        ),
        "public": dict(
            name="hf:coastalcph/lex_glue/ledgar", recipe="classification", max_length=256
        ),
    }
    return minilm(
        data=chosen(data, sets),
        optim=dict(learning_rate=2e-3),
        train=dict(epochs=8.0, log_every=5),
        out=f"runs/domains/legal_{data}",
    )
