"""Does it matter where the factors start? PiSSA, OLoRA, LoRA-GA, EVA and LoftQ beside LoRA's zeros,
three seeds.

fp32 (default): LoRA's uniform and Gaussian starts, orthogonal, PiSSA, OLoRA, LoRA-GA and EVA, rank
8 on all linear layers; 21 runs. PiSSA (2404.02948), LoRA-GA (2407.05000): a start from the weight's
or the gradient's singular vectors learns faster in the first steps; how much is left at the end
depends on the learning rate of each.
quantised: LoRA's start, LoftQ and QPiSSA over nf4 and nf2; 18 runs. LoftQ (Phi-2, GSM8K): 64.1 ±
0.7 at 4 bits where QLoRA has 60.2 ± 0.6, and at 2 bits it converges where QLoRA sometimes does not.

Expect: lower loss at steps 10 to 20 for pissa, olora and lora_ga; a gap between loftq and kaiming
at nf2, hardly one at nf4. One learning rate for all: a difference at the end is not one of the best
of each.

Ours at a reduced size (experiments/LOG.md, "Presets": three layers, 16 tokens, 32 steps, seed 0; 2
CPU cores, AMD EPYC), test loss and accuracy. fp32: orthogonal 0.616 (65.5 %), gaussian 0.620
(65.0), kaiming 0.621 (65.5), pissa 0.624 (64.2), eva 0.625 (65.7), lora_ga 0.633 (63.7), olora
0.634 (63.8): nothing gained at the end, binomial error 1.6 points; 7 runs in 58 s.
quantised, nf4: kaiming 0.623 (65.1), loftq 0.621 (65.4), qpissa 0.626 (64.5); nf2: kaiming 0.648
(62.4), loftq 0.646 (62.1), qpissa 0.631 (64.9): the gap at nf2 is qpissa's, not loftq's; 6 runs in
29 s. Not run: three seeds, the size above.

lora-jax sweep --config configs/sweeps/initialisation.py:fp32
"""

import ml_collections

from configs.common import chosen, rotten_tomatoes

_GRIDS = {
    "fp32": dict(
        format=("none",),
        axes=("lora.init = kaiming, gaussian, orthogonal, pissa, olora, lora_ga, eva",),
    ),
    "quantised": dict(format=("nf4", "nf2"), axes=("lora.init = kaiming, loftq, qpissa",)),
}


def get_config(base: str = "fp32") -> ml_collections.ConfigDict:
    """The grid over initialisers: 'fp32', or 'quantised' for those that choose the codes of the
    base with the factors.
    """
    return rotten_tomatoes(
        quant=dict(block_size=64, double=True),
        train=dict(log_every=5),
        sweep=dict(**chosen(base, _GRIDS), seeds=(0, 1, 2)),
        out=f"runs/initialisation_{base}",
    )
