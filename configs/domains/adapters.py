"""Three domains in a row on one nf4 base: entities in finance, scales in music, products in sales. QLoRA of Gemma-3-270M, rank 8.

Argument: finance, music or sales. The three differ in their data alone, so their adapters are served from one base in memory.

python experiments/three_adapters.py                         train what is missing, then the table of every adapter on every domain
lora-jax train --config configs/domains/adapters.py:finance  one of them
lora-jax generate gemma3-270m --format nf4 --adapter finance=RUN/adapter --adapter music=RUN/adapter --prompt "finance: ..."

Results: not measured yet with Gemma; at small scale (three synthetic tasks, a decoder of width 16 in nf4) a test
checks that every adapter wins at home by a paired bootstrap.
"""

import ml_collections

DOMAINS = {
    "finance": dict(
        name="evals-ner-finance/samples.jsonl", fields=dict(prompt="input.-1.content", completion="ideal"), prompt="{prompt}\nEntities:"
    ),
    "music": dict(name="evals-music-theory-scale-modes/samples.jsonl", fields=dict(prompt="input", completion="ideal")),
    "sales": dict(name="evals-product-matching/zeroshot/samples.jsonl", fields=dict(prompt="input", completion="ideal")),
}


def get_config(domain: str = "finance") -> ml_collections.ConfigDict:
    """The config of one domain."""
    if domain not in DOMAINS:
        raise ValueError(f"the argument must be one of {', '.join(DOMAINS)}, got {domain!r}")
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gemma3-270m"),
            data=dict(task="completion", recipe="completion", max_length=128, **DOMAINS[domain]),
            method="qlora",
            lora=dict(rank=8, alpha=16.0, targets="all-linear"),
            quant=dict(format="nf4", block_size=64, double=True),
            optim=dict(learning_rate=1e-3, weight_decay=0.0, schedule="linear", warmup_fraction=0.1, clip_norm=1.0),
            train=dict(total_steps=20, batch_size=8, eval_batch_size=8, eval_examples=8, log_every=5, checkpoint_every=20),
            out=f"runs/adapters/{domain}",
        )
    )
