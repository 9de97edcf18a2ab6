"""Which rank, which bit-width, which layers? MiniLM-L6 on Rotten Tomatoes, 18 adapters and 2
baselines, one seed.

The grid: rank 1, 4, 16 × base in fp32, int8, nf4 × query+value or all linear layers, and besides
them full fine-tuning and the head alone. Forty steps a run are less than a fifth of an epoch:
enough to tell cells apart, not to finish.

lora-jax sweep --config configs/default.py

From an empty cache on 2 CPU cores (AMD EPYC, jax 0.10.2): 9 min 36 s, downloads and compilation
counted. Test accuracy in %, one seed, 875 texts, binomial standard error 1.4 to 1.7; full
fine-tuning 79.0, head alone 60.8:

| | r1 | r4 | r16 | base, MB |
|---|---|---|---|---|
| fp32, all linear | 75.7 | 77.7 | 77.4 | 90.9 |
| int8, all linear | 75.1 | 77.4 | 77.1 | 58.7 |
| nf4, all linear | 72.3 | 77.0 | 77.3 | 53.3 |
| fp32, query+value | 75.1 | 72.6 | 72.5 | 90.9 |
| int8, query+value | 75.4 | 72.5 | 72.7 | 58.7 |
| nf4, query+value | 74.7 | 72.6 | 72.7 | 53.3 |
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The grid of the main job."""
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="minilm-l6", scan=False, compute_dtype="float32"),
            data=dict(name="rotten_tomatoes", text="text", label="label", max_length=128),
            method="lora",
            lora=dict(rank=8, alpha=16.0, scaling="standard", targets="all-linear"),
            quant=dict(format="none", block_size=64, double=True),
            optim=dict(
                learning_rate=2e-3,
                weight_decay=0.01,
                schedule="linear",
                warmup_fraction=0.1,
                clip_norm=1.0,
            ),
            train=dict(
                total_steps=40,
                batch_size=32,
                eval_batch_size=64,
                eval_examples=256,
                log_every=5,
                checkpoint_every=20,
                seed=0,
            ),
            sweep=dict(
                rank=(1, 4, 16),
                format=("none", "int8", "nf4"),
                targets=("query+value", "all-linear"),
                seeds=(0,),
                baselines=("full", "head"),
                learning_rate=dict(full=2e-4, head=5e-3, lora=2e-3, qlora=2e-3),
            ),
            out="runs/default",
        )
    )
