"""LoRA's Tables 4, 5, 6, 15 and 16: GPT-3 175B, whose weights are not public; the settings are here
for models of one's own.

lora-jax train --config configs/papers/lora_gpt3.py:table5-qv-wikisql --config.model.name=FOLDER

Names: table4-4.7m, table4-37.7m, table5-MATRICES, table6-MATRICES-rRANK and table15-MATRICES-rRANK,
each with -wikisql or -mnli (table4 also -samsum), and table16-EXAMPLES. MATRICES are letters of q,
k, v, o. Settings are those of the paper's Table 12 (and, for table16, of Table 17): AdamW, linear,
warm-up of 250,000 tokens. Ours: not run.
"""

import ml_collections

from published import Preset, config_of
from published.lora import (
    GPT3_NOISE,
    TABLE_4,
    TABLE_5,
    TABLE_6,
    TABLE_6_RANKS,
    TABLE_15,
    TABLE_16,
)

# Training examples, tokens of an example, metric.
_DATA = {
    "wikisql": (56_355, 384, "accuracy"),
    "mnli": (392_702, 768, "accuracy, matched"),
    "samsum": (14_732, 2048, "ROUGE-1"),
}
_WARMUP_TOKENS = 250_000


def _preset(
    name: str,
    data: str,
    matrices: str,
    rank: int,
    value: float,
    source: str,
    *,
    spread: float | None = None,
    examples: int | None = None,
    batch: int = 128,
    epochs: int = 2,
) -> Preset:
    count, length, metric = _DATA[data]
    total = (examples or count) * length * epochs
    settings = dict(
        model=dict(name="gpt3-175b"),
        data=dict(
            task="completion",
            name=f"data/{data}.jsonl",
            text="prompt",
            label="completion",
            max_length=length,
            train_examples=examples,
        ),
        method="lora",
        # The paper keeps alpha at the first rank that it tried, and does not print it: 8 stands for
        # that.
        lora=dict(
            rank=rank, alpha=8.0, targets=rf"layers(_\d+)?/attn/({'|'.join(matrices)})/kernel"
        ),
        optim=dict(
            learning_rate=2e-4,
            weight_decay=0.1,
            schedule="linear",
            warmup_fraction=min(_WARMUP_TOKENS / total, 0.5),
        ),
        train=dict(batch_size=batch, epochs=float(epochs)),
        out=f"runs/papers/lora_gpt3/{name}",
    )
    return Preset(
        settings,
        metric,
        value,
        GPT3_NOISE[data] if spread is None else spread,
        source,
        {},
        f"weights (GPT-3's are not public), and {data} as data/{data}.jsonl",
        beyond="GPT-3's weights, at any cost",
        examples=examples or count,
    )


PRESETS: dict[str, dict[str, Preset]] = {}


def _add(name: str, *args, **options) -> None:
    PRESETS[name] = {"paper": _preset(name, *args, **options)}


for _budget, _matrices, _rank in (("4.7m", "v", 2), ("37.7m", "qv", 8)):
    _, _sql, _mnli, _sam = TABLE_4[f"lora {_budget}"]
    for _data, _value in (("wikisql", _sql), ("mnli", _mnli), ("samsum", _sam[0])):
        _add(
            f"table4-{_budget}-{_data}",
            _data,
            _matrices,
            _rank,
            _value,
            f"LoRA, Table 4, {_budget}",
        )
for _matrices, (_rank, _sql, _mnli) in TABLE_5.items():
    for _data, _value in (("wikisql", _sql), ("mnli", _mnli)):
        _add(
            f"table5-{_matrices}-{_data}",
            _data,
            _matrices,
            _rank,
            _value,
            f"LoRA, Table 5, {_matrices} at rank {_rank}",
        )
for _data, _rows in TABLE_6.items():
    for _matrices, _values in _rows.items():
        for _rank, _value in zip(TABLE_6_RANKS, _values):
            _add(
                f"table6-{_matrices}-r{_rank}-{_data}",
                _data,
                _matrices,
                _rank,
                _value,
                f"LoRA, Table 6, {_matrices} at rank {_rank}",
            )
for _matrices, _rank, _, _sql, _mnli in TABLE_15.values():
    for _data, _value in (("wikisql", _sql), ("mnli", _mnli)):
        _add(
            f"table15-{_matrices}-r{_rank}-{_data}",
            _data,
            _matrices,
            _rank,
            _value,
            f"LoRA, Table 15, {_matrices} at rank {_rank}",
        )
for (_examples, _value), _batch, _epochs in zip(
    TABLE_16["lora"].items(), (20, 20, 100, 128), (40, 40, 4, 2)
):
    _add(
        f"table16-{_examples}",
        "mnli",
        "qv",
        8,
        _value,
        f"LoRA, Table 16, {_examples} examples",
        spread=0.3,
        examples=_examples,
        batch=_batch,
        epochs=_epochs,
    )


def get_config(arg: str = "table4-4.7m-wikisql") -> ml_collections.ConfigDict:
    """The settings of one row and data set."""
    return config_of(PRESETS, arg)
