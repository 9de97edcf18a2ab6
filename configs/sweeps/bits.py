"""Which 4-bit code, and does double quantisation cost anything? QLoRA's Figure 3 and Table 3 in
shape, three seeds.

MiniLM-L6 on Rotten Tomatoes; rank 8 on all linear layers over a base in fp32, int8, and the 4-bit
codes int4, bitsandbytes' fp4, OCP's E2M1 and nf4, the 4-bit ones with double quantisation and
without; 30 runs. The paper (LLaMA 7B to 65B, zero-shot): NF4 above Float4, double quantisation
loses nothing and saves 0.37 bits a weight. Table 3 (RoBERTa-large, GLUE): BF16 LoRA 88.8, Int8
88.8, FP4 88.6.

Expect: int8 equals fp32; nf4 at most a little below, fp4 below nf4; no difference by double
quantisation. After tuning the gaps are of the size of the seeds' spread: the report says which of
them three seeds support.

Ours at a reduced size (experiments/LOG.md, "Presets": three layers, 16 tokens, 32 steps, seed 0; 2
CPU cores, AMD EPYC), test loss and accuracy: fp32 0.621 (65.5 %), int8 0.621 (65.7), fp4_e2m1 0.621
(65.8), fp4 0.621 (65.3 to 65.4), int4 0.622 (64.7 to 64.8), nf4 0.623 (65.1 to 65.3), with double
quantisation and without alike: nothing told apart, binomial error 1.6 points; 10 runs in 93 s. Not
run: three seeds, the size above.

lora-jax sweep --config configs/sweeps/bits.py
"""

import ml_collections

from configs.common import rotten_tomatoes


def get_config() -> ml_collections.ConfigDict:
    """The grid over formats of the frozen base."""
    return rotten_tomatoes(
        quant=dict(block_size=64, double=True),
        sweep=dict(
            format=("none", "int8", "int4", "fp4", "fp4_e2m1", "nf4"),
            axes=("quant.double = true, false if quant.format in (int4, fp4, fp4_e2m1, nf4)",),
            seeds=(0, 1, 2),
        ),
        out="runs/bits",
    )
