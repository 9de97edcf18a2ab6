"""Which learning rate, and does it move with the rank? LoRA's tuned rates and QLoRA's search in
shape, three seeds.

MiniLM-L6 on Rotten Tomatoes; LoRA of rank 1, 8 and 64 on all linear layers at six rates from 1e-4
to 3e-2, and full fine-tuning at five from 1e-5 to 1e-3; 69 runs, constant rate. LoRA (Table 12,
GPT-3): 2e-4 where full fine-tuning takes 5e-6. QLoRA (Table 9, 7B): 2e-4, with alpha fixed and the
rate searched. LoRA Without Regret: the best rate of LoRA is about 10 times that of full fine-tuning
(15 times in runs of 100 steps), and under alpha / rank it moves by less than a factor of 2 from
rank 4 to 512.

Expect: the best rate of ranks 8 and 64 is the same, and 5 to 20 times that of full fine-tuning.

Ours at a reduced size (experiments/LOG.md, "Presets": three layers, 16 tokens, 32 steps, seed 0; 2
CPU cores, AMD EPYC), validation loss: ranks 8 and 64 are best at 1e-4, the lowest rate (0.662,
0.661), rank 1 at 3e-3 (0.644), full at 3e-5 (0.640): ranks 8 and 64 agree, at 3 times full
fine-tuning's or less, as their best stands at the edge. With so few steps at a constant rate every
curve has two valleys (rank 8: 0.662, 0.692, 0.740, 0.709 from 1e-4 to 3e-3). 23 runs in 70 s. Not
run: three seeds, the size above.

lora-jax sweep --config configs/sweeps/learning_rate.py
"""

import ml_collections

from configs.common import rotten_tomatoes


def get_config() -> ml_collections.ConfigDict:
    """The grid over learning rate and rank, and full fine-tuning's own rates."""
    return rotten_tomatoes(
        optim=dict(schedule="constant", warmup_fraction=0.0),
        sweep=dict(
            rank=(1, 8, 64),
            axes=(
                "optim.learning_rate = 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2 if method == lora",
                "optim.learning_rate = 1e-5, 3e-5, 1e-4, 3e-4, 1e-3 if method == full",
            ),
            baselines=("full",),
            seeds=(0, 1, 2),
        ),
        out="runs/learning_rate",
    )
