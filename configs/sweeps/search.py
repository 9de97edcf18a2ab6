"""A search where a grid would be too large: learning rate, rank, alpha, dropout and targets of
QLoRA together, 24 trials by Optuna.

MiniLM-L6 on Rotten Tomatoes, nf4, 100 steps a trial; four trials are asked and trained at a time,
and those that are among the worse half after 50 steps are stopped there. A grid of five values a
setting would have 3,125 runs. Needs the extra: pip install "lora_jax[search]".

Expect: the best trials have a rate near 2e-3 and all linear layers; rank hardly matters.

Ours at a reduced size (experiments/LOG.md, "Presets": three layers, 16 tokens, 32 steps, 12 trials,
rung at 16; 2 CPU cores, AMD EPYC): 6 of 12 trials stopped; the best by validation loss (0.621, test
accuracy 66.1 %) has a rate of 4.3e-3, rank 1, alpha 6.2 and all linear layers, the next (0.626) a
rate of 1.3e-3, rank 42 and all linear layers; 58 s. Not run: 24 trials, the size above.

lora-jax sweep --config configs/sweeps/search.py
# goes on where 24 ended
lora-jax sweep --config configs/sweeps/search.py --config.sweep.search.trials=48
"""

import ml_collections

from configs.common import rotten_tomatoes


def get_config() -> ml_collections.ConfigDict:
    """The space and what is trained at each point."""
    return rotten_tomatoes(
        method="qlora",
        quant=dict(format="nf4"),
        sweep=dict(
            stack=4,
            halving=dict(rungs=(50,), factor=2),
            search=dict(
                trials=24,
                space=(
                    "optim.learning_rate = log 1e-4 .. 2e-2",
                    "lora.rank = log 1 .. 64",
                    "lora.alpha = log 4.0 .. 64.0",
                    "lora.dropout = 0.0 .. 0.2",
                    "lora.targets = query+value, all-linear",
                ),
            ),
        ),
        out="runs/search",
    )
