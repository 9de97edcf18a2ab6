"""Which matrices are worth adapting? LoRA's Table 5 and QLoRA's Figure 2 in shape, on MiniLM-L6 and
Rotten Tomatoes, three seeds.

table5 (default): one budget of parameters spent on different matrices: rank 8 on the query, key,
value or output alone, rank 4 on two of them, rank 2 on all four; 21 runs. The paper (GPT-3, WikiSQL
± 0.5): q 70.4, k 70.0, v 73.0, o 73.2, qk 71.4, qv 73.7, qkvo 73.7: more matrices at a lower rank
beat one at a higher rank, and the query or key alone are worst.
figure2: query and value, attention, the MLP, or all linear layers at rank 8 over an nf4 base, and
full fine-tuning; 15 runs. QLoRA (LLaMA-7B, Alpaca): query and value stay below full fine-tuning,
all linear layers reach it.

Expect: {q, k} below {v, o, qv, qkvo}; all-linear above query+value.

Ours at a reduced size (experiments/LOG.md, "Presets": three layers, 16 tokens, 32 steps, seed 0; 2
CPU cores, AMD EPYC), test loss and accuracy. table5: q 0.662 (61.4 %), k 0.659 (62.3), qk 0.654
(64.7), v 0.643 (65.0), qv 0.641 (64.8), o 0.635 (64.5), qkvo 0.631 (65.1): the paper's order; 7
runs in 24 s. figure2: query+value 0.643 (64.9), attention 0.632 (65.0), mlp 0.629 (64.8),
all-linear 0.623 (65.1), full 0.609 (66.2); 5 runs in 24 s. One seed, binomial error 1.6 points: the
losses have an order, the accuracies do not. Not run: three seeds, the size above.

lora-jax sweep --config configs/sweeps/targets.py:table5
"""

import ml_collections

from configs.common import chosen, rotten_tomatoes

_ONE = r"layers(_\d+)?/attn/{}/kernel"
_TABLE_5 = {
    "query=" + _ONE.format("q"): 8,
    "key=" + _ONE.format("k"): 8,
    "value=" + _ONE.format("v"): 8,
    "output=" + _ONE.format("o"): 8,
    "query+key=" + _ONE.format("(q|k)"): 4,
    "query+value": 4,
    "attention": 2,
}
_PAIRS = ", ".join(f"({targets}, {rank})" for targets, rank in _TABLE_5.items())
_GRIDS = {
    "table5": dict(axes=(f"lora.targets, lora.rank = {_PAIRS}",)),
    "figure2": dict(
        targets=("query+value", "attention", "mlp", "all-linear"),
        format=("nf4",),
        baselines=("full",),
    ),
}


def get_config(table: str = "table5") -> ml_collections.ConfigDict:
    """The grid of one table: 'table5' or 'figure2'."""
    return rotten_tomatoes(
        sweep=dict(**chosen(table, _GRIDS), seeds=(0, 1, 2), learning_rate=dict(full=1e-4)),
        out=f"runs/targets_{table}",
    )
