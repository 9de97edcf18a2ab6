"""How many weights may share a scale? The block sizes of k-bit inference scaling laws and QLoRA in
shape, three seeds.

MiniLM-L6 on Rotten Tomatoes; rank 8 on all linear layers over nf4, fp4 and int4, blocks of 16 to
384 weights, scales not quantised again; 45 runs. MiniLM's matrices have 384 or 1536 rows, so 384 is
the largest block that fills all of them; the papers end at 1024 and 4096. Dettmers & Zettlemoyer
(2212.09720): blocks of 64 rather than 1024 cost 0.24 bits a parameter and are worth nearly as much
as a fifth bit; best 64 to 128 at 4 bits. QLoRA takes 64. Error of a Gaussian weight: nf4 0.087 at
blocks of 32, 0.092 at 64, 0.096 at 128.

Expect: accuracy falls with the block, least for nf4; stored size falls by 16 / block bits and more
a weight. After tuning most of the difference is gone.

Ours at a reduced size (experiments/LOG.md, "Presets": three layers, 16 tokens, 32 steps, seed 0; 2
CPU cores, AMD EPYC), test loss, blocks of 16 to 384: nf4 0.621 to 0.623, fp4 0.621 to 0.623, int4
0.621 to 0.624, without an order in the block (64.3 to 66.1 %, binomial error 1.6 points); stored
6.0, 5.0, 4.5, 4.25, 4.08 bits a weight; 15 runs in 99 s. Not run: three seeds, the size above.

lora-jax sweep --config configs/sweeps/blocksize.py
"""

import ml_collections

from configs.common import rotten_tomatoes


def get_config() -> ml_collections.ConfigDict:
    """The grid over block size and 4-bit format."""
    return rotten_tomatoes(
        quant=dict(double=False),
        sweep=dict(
            format=("nf4", "fp4", "int4"),
            axes=("quant.block_size = 16, 32, 64, 128, 384",),
            seeds=(0, 1, 2),
        ),
        out="runs/blocksize",
    )
