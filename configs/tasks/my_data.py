r"""Your own records: a CSV, TSV, JSONL, JSON or Parquet file, a folder of splits, a TFDS name, or
'hf:org/name'. Argument: the recipe.

Recipes for an encoder (MiniLM-L6, LoRA rank 8): classification, pair_classification, regression,
pair_regression, token_classification, qa, multiple_choice. For a language model (Gemma-3-270M,
QLoRA nf4): instruction, chat, summarisation, translation, code, creative, table_to_text,
completion; and each of the others as RECIPE@decoder, its answer written as text.

lora-jax data preview --config configs/tasks/my_data.py:classification --config.data.name=a.csv \
    --config.data.fields.text=review
lora-jax train --config configs/tasks/my_data.py:classification --config.data.name=a.csv \
    --config.data.fields.text=review
lora-jax evaluate RUN

Every role of a recipe has a column of its own name unless --config.data.fields.ROLE names another,
or a path such as input.-1.content.
"""

import ml_collections

from configs.common import gemma3, minilm

ENCODER = (
    "classification",
    "pair_classification",
    "regression",
    "pair_regression",
    "token_classification",
    "qa",
    "multiple_choice",
)
DECODER = (
    "instruction",
    "chat",
    "summarisation",
    "translation",
    "code",
    "creative",
    "table_to_text",
    "completion",
)


def get_config(recipe: str = "classification") -> ml_collections.ConfigDict:
    """The config of one recipe; data.name is to be given."""
    name, _, model = recipe.partition("@")
    if name not in ENCODER + DECODER or model not in ("", "decoder") or (name in DECODER and model):
        raise ValueError(
            f"the argument must be one of {', '.join(ENCODER + DECODER)}, or one of the first "
            f"seven with @decoder, got {recipe!r}"
        )
    if name in DECODER or model:
        return gemma3(
            data=dict(name="my_data.jsonl", recipe=name, max_length=512),
            optim=dict(learning_rate=5e-4, schedule="cosine", warmup_fraction=0.05, clip_norm=1.0),
            train=dict(epochs=1.0, log_every=5, checkpoint_every=50),
            out=f"runs/my_data/{name}",
        )
    return minilm(
        data=dict(name="my_data.csv", recipe=name, max_length=384 if name == "qa" else 128),
        train=dict(epochs=3.0),
        out=f"runs/my_data/{name}",
    )
