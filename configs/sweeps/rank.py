"""How large must the rank be? LoRA's Tables 6 and 18 and QLoRA's Figure 4 in shape, on MiniLM-L6
and Rotten Tomatoes, three seeds.

table6 (default): rank 1, 2, 4, 8, 64 on the query alone, query and value, and all four attention
matrices; 45 runs. The paper (GPT-3, WikiSQL ± 0.5): the query alone 68.8 at rank 1 and 70.0 at rank
64; query and value 73.4 and 73.5: rank 1 is enough if enough matrices are adapted.
table18: rank 1 to 256 on query and value; 27 runs. The paper (GPT-2 medium, E2E): validation loss
1.23 at rank 1, 1.16 from 16 to 512, 1.17 at 1024. MiniLM's matrices have 384 rows, so the ranks end
at 256.
figure4: rank 8 to 256 on all linear layers over an nf4 base; 18 runs. QLoRA (LLaMA-7B, Alpaca):
RougeL is flat in the rank.

Expect: query and value flat in the rank within what seeds do, and above the query alone.

Ours at a reduced size (experiments/LOG.md, "Presets": three layers, 16 tokens, 32 steps, seed 0; 2
CPU cores, AMD EPYC), test loss and accuracy. table6, rank 1 to 64: query 0.661 to 0.663 (61.1 to
61.9 %), query and value 0.637 to 0.642 (64.8 to 65.6), all four 0.629 to 0.631 (64.8 to 65.7): flat
in the rank, as in the paper; 15 runs in 45 s. figure4, rank 8 to 256: 0.623 to 0.628, flat; 6 runs
in 39 s. table18, rank 1 to 256: 0.637 (rank 1) to 0.643 (64.8 to 65.6 %), flat; 9 runs in 28 s. Not
run: three seeds, the size above.

lora-jax sweep --config configs/sweeps/rank.py:table6
"""

import ml_collections

from configs.common import chosen, rotten_tomatoes

_QUERY = r"layers(_\d+)?/attn/q/kernel"
_GRIDS = {
    "table6": dict(
        rank=(1, 2, 4, 8, 64), targets=(_QUERY, "query+value", "attention"), format=("none",)
    ),
    "table18": dict(
        rank=(1, 2, 4, 8, 16, 32, 64, 128, 256), targets=("query+value",), format=("none",)
    ),
    "figure4": dict(rank=(8, 16, 32, 64, 128, 256), targets=("all-linear",), format=("nf4",)),
}


def get_config(table: str = "table6") -> ml_collections.ConfigDict:
    """The grid of one table: 'table6', 'table18' or 'figure4'."""
    # The scale is alpha / rank with one alpha, as in the paper.
    return rotten_tomatoes(
        sweep=dict(**chosen(table, _GRIDS), seeds=(0, 1, 2)), out=f"runs/rank_{table}"
    )
