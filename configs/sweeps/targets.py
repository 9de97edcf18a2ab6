"""Which matrices are worth adapting? LoRA's Table 5 and QLoRA's Figure 2 in shape, on MiniLM-L6 and
Rotten Tomatoes, three seeds.

table5 (default): one budget of parameters spent on different matrices: rank 8 on the query, key,
value or output alone, rank 4 on two of them, rank 2 on all four; 21 runs. The paper (GPT-3, WikiSQL
± 0.5): q 70.4, k 70.0, v 73.0, o 73.2, qk 71.4, qv 73.7, qkvo 73.7: more matrices at a lower rank
beat one at a higher rank, and the query or key alone are worst.
figure2: query and value, attention, the MLP, or all linear layers at rank 8 over an nf4 base, and
full fine-tuning; 15 runs. QLoRA (LLaMA-7B, Alpaca): query and value stay below full fine-tuning,
all linear layers reach it.

Expect: {q, k} below {v, o, qv, qkvo}; all-linear above query+value. Ours: not run yet. Time: not
    measured yet.

lora-jax sweep --config configs/sweeps/targets.py:table5
"""

import ml_collections

_TABLE_5 = (
    r"lora.targets, lora.rank = (layers(_\d+)?/attn/q/kernel, 8), (layers(_\d+)?/attn/k/kernel, 8), (layers(_\d+)?/attn/v/kernel, 8), "
    r"(layers(_\d+)?/attn/o/kernel, 8), (layers(_\d+)?/attn/(q|k)/kernel, 4), (query+value, 4), (attention, 2)"
)
_GRIDS = {
    "table5": dict(axes=(_TABLE_5,)),
    "figure2": dict(
        targets=("query+value", "attention", "mlp", "all-linear"),
        format=("nf4",),
        baselines=("full",),
    ),
}


def get_config(table: str = "table5") -> ml_collections.ConfigDict:
    """The grid of one table: 'table5' or 'figure2'."""
    if table not in _GRIDS:
        raise ValueError(f"the argument must be one of {', '.join(_GRIDS)}, got {table!r}")
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="minilm-l6", scan=False),
            data=dict(name="rotten_tomatoes", text="text", label="label", max_length=128),
            method="lora",
            lora=dict(rank=8, alpha=16.0, scaling="standard"),
            optim=dict(
                learning_rate=1e-3,
                weight_decay=0.0,
                schedule="linear",
                warmup_fraction=0.1,
                clip_norm=1.0,
            ),
            train=dict(
                total_steps=100,
                batch_size=32,
                eval_batch_size=64,
                log_every=10,
                checkpoint_every=50,
            ),
            sweep=dict(**_GRIDS[table], seeds=(0, 1, 2), learning_rate=dict(full=1e-4)),
            out=f"runs/targets_{table}",
        )
    )
