"""WikiSQL (Zhong et al. 2017), questions about a table to SQL, from the Hugging Face hub.

lora-jax train --config configs/tasks/wikisql.py
lora-jax evaluate RUN --generate

The prompt holds the question and the table's column names; answers are compared with the readable
query as texts (exact match; the published logical-form accuracy compares parsed queries). Results:
not measured yet, the hub's files have to be downloaded.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 8, of Gemma-3-270M; another model with --config.model.name."""
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gemma3-270m"),
            data=dict(
                task="completion",
                name="hf:Salesforce/wikisql",
                recipe="code",
                fields=dict(task="table.header+question", code="sql.human_readable"),
                decoding=dict(max_new=96),
                max_length=384,
            ),
            method="qlora",
            lora=dict(rank=8, alpha=16.0, targets="all-linear"),
            quant=dict(format="nf4", block_size=64, double=True),
            optim=dict(
                learning_rate=2e-4,
                weight_decay=0.0,
                schedule="linear",
                warmup_fraction=0.03,
                clip_norm=0.3,
            ),
            train=dict(
                epochs=1.0, batch_size=8, eval_batch_size=8, log_every=10, checkpoint_every=100
            ),
            out="runs/wikisql",
        )
    )
