"""Does the best learning rate stay where it is when the rank changes? Adam on each factor beside
what moves pairs of factors by their product, three seeds.

MiniLM-L6 on Rotten Tomatoes; rank 2, 8 and 32 on all linear layers, alpha / rank with one alpha, at
five rates a factor of 3.2 apart: adam from 3.2e-4, riemannian and lora_rite from 1e-4, lora_muon
(whose rate is a spectral norm) from 3.2e-3; the classifier's rate is 1e-3 throughout; 180 runs,
constant rate. LoRA-Muon's paper and LoRA-RITE's ask for one rate at all ranks.

Expect: the best rate of adam rises with the rank, as its step of the weight is alpha / rank times
that of the factors, and that of the others moves by less than one step of the grid.

Ours at a reduced size (three layers, 16 tokens, 32 steps, seed 0; 2 CPU cores, AMD EPYC, beside
other jobs), validation loss of adam: 0.668, 0.678 and 0.678 at rank 2, 8 and 32, all at 3.2e-4, the
lowest of its rates, so that its best is not inside the grid; of riemannian 0.654 at 3.2e-4 (rank 2),
0.631 at 3.2e-3 (8) and 0.672 at 1e-4 (32), on curves that are not smooth: no transfer is shown. 15
runs side by side in 255 and 800 s. Not run: lora_rite, lora_muon, three seeds, the size above. Steps of the other three are slower on a CPU, where
XLA decomposes matrix by matrix: experiments/LOG.md, "Optimisers of products". Expected time of all
180 on two quiet cores: two hours.

lora-jax sweep --config configs/sweeps/factors.py
"""

import ml_collections

from configs.common import rotten_tomatoes


def get_config() -> ml_collections.ConfigDict:
    """The grid over what moves factors, rank and rate."""
    return rotten_tomatoes(
        optim=dict(schedule="constant", warmup_fraction=0.0, head_learning_rate=1e-3),
        sweep=dict(
            rank=(2, 8, 32),
            axes=(
                "optim.factors = adam, riemannian, lora_rite, lora_muon",
                "optim.learning_rate = 3.2e-4, 1e-3, 3.2e-3, 1e-2, 3.2e-2 if optim.factors == adam",
                "optim.learning_rate = 1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2"
                " if optim.factors == riemannian",
                "optim.learning_rate = 1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2"
                " if optim.factors == lora_rite",
                "optim.learning_rate = 3.2e-3, 1e-2, 3.2e-2, 1e-1, 3.2e-1"
                " if optim.factors == lora_muon",
            ),
            seeds=(0, 1, 2),
        ),
        out="runs/factors",
    )
