r"""Three domains in a row on one nf4 base: entities in finance, scales in music, products in sales.
QLoRA of Gemma-3-270M, rank 8.

Argument: finance, music or sales. The three differ in their data alone, so their adapters are
served from one base in memory.

# train what is missing, then the table of every adapter on every domain
python experiments/three_adapters.py
# one of them
lora-jax train --config configs/domains/adapters.py:finance
lora-jax generate gemma3-270m --format nf4 --adapter finance=RUN/adapter \
    --adapter music=RUN/adapter --prompt "finance: ..."

Results (seed 0, 20 steps, 24 held-out examples at most; nats a token of the completion, with 95 %
intervals):

| held-out data | base | finance | music | sales |
|---|---|---|---|---|
| finance (24) | 4.516 [3.556, 5.958] | 0.556 [0.264, 0.788] | 6.014 [5.235, 6.948] | 10.905 [10.044, 11.674] |
| music (18) | 8.153 [7.354, 8.981] | 8.163 [7.524, 8.834] | 0.490 [0.427, 0.559] | 9.709 [8.883, 10.561] |
| sales (24) | 7.269 [6.955, 7.605] | 2.805 [2.640, 3.006] | 5.124 [4.964, 5.289] | 0.261 [0.013, 0.519] |

Every adapter wins at home (paired bootstrap, p 0.001 against each). The sales adapter has learnt to
answer No (see sales.py).
"""

import ml_collections

from configs.common import SHORT, chosen, gemma3

DOMAINS = {
    "finance": dict(
        name="evals-ner-finance/samples.jsonl",
        fields=dict(prompt="input.-1.content", completion="ideal"),
        prompt="{prompt}\nEntities:",
    ),
    "music": dict(
        name="evals-music-theory-scale-modes/samples.jsonl",
        fields=dict(prompt="input", completion="ideal"),
    ),
    "sales": dict(
        name="evals-product-matching/zeroshot/samples.jsonl",
        fields=dict(prompt="input", completion="ideal"),
    ),
}


def get_config(domain: str = "finance") -> ml_collections.ConfigDict:
    """The config of one domain."""
    return gemma3(
        data=dict(recipe="completion", max_length=128, **chosen(domain, DOMAINS)),
        optim=SHORT,
        train=dict(total_steps=20, eval_examples=8, log_every=5, checkpoint_every=20),
        out=f"runs/adapters/{domain}",
    )
