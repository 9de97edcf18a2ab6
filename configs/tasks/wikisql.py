"""WikiSQL (Zhong et al. 2017), questions about a table to SQL, from the Hugging Face hub.

lora-jax train --config configs/tasks/wikisql.py
lora-jax evaluate RUN --generate

The prompt holds the question and the table's column names; answers are compared with the readable
query as texts (exact match; the published logical-form accuracy compares parsed queries). Results:
not measured yet, the hub's files have to be downloaded.
"""

import ml_collections

from configs.common import gemma3


def get_config() -> ml_collections.ConfigDict:
    """QLoRA, rank 8, of Gemma-3-270M; another model with --config.model.name."""
    return gemma3(
        data=dict(
            name="hf:Salesforce/wikisql",
            recipe="code",
            fields=dict(task="table.header+question", code="sql.human_readable"),
            decoding=dict(max_new=96),
            max_length=384,
        ),
        train=dict(epochs=1.0),
        out="runs/wikisql",
    )
