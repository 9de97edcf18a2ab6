"""LoRA's Tables 3, 13, 14 and 18: GPT-2 on E2E, DART and WebNLG, and the sweep over ranks.

lora-jax sweep --config configs/papers/lora_gpt2.py:e2e-m
lora-jax sweep --config configs/papers/lora_gpt2.py:rank-16

Names: e2e-m, e2e-l, dart-m, dart-l, webnlg-m, webnlg-l, and rank-1 to rank-1024. Settings are those
of the paper's Table 11; `:script` of e2e-m is the command that its repository prints
(microsoft/LoRA at c4593f0), which clips no gradient and decodes with length penalty 0.8. The data
are folders data/e2e, data/dart and data/webnlg with train.jsonl, validation.jsonl and test.jsonl,
in each line a prompt (the meaning representation, or triples), a completion, and in test.jsonl one
line a meaning with all right texts as references. microsoft/LoRA has the challenge's own files;
the public set gem/e2e_nlg of configs/tasks/e2e.py may be the cleaned one. Published figures are
means of 3 seeds. Ours: not run (needs a GPU).
"""

import ml_collections

from published import Preset, config_of
from published.lora import TABLE_3, TABLE_13, TABLE_14, TABLE_18

_MODELS = {"m": "openai-community/gpt2-medium", "l": "openai-community/gpt2-large"}
# Data: weight decay, dropout, label smoothing, length penalty (Table 11), training examples.
_DATA = {
    "e2e": (0.01, 0.1, 0.1, 0.9, 42_000),
    "webnlg": (0.01, 0.1, 0.1, 0.8, 22_000),
    "dart": (0.0, 0.0, 0.0, 0.8, 82_000),
}
_METRICS = {
    "e2e": ("lowercase_bleu", "nist", "meteor", "coco_rouge_l", "cider"),
    "webnlg": ("lowercase_bleu", "meteor", "ter"),
    "dart": ("lowercase_bleu", "meteor", "ter"),
}
_BEYOND = {
    "e2e": "METEOR needs Java",
    "webnlg": "BLEU of seen and unseen categories apart needs a test file of each",
    "dart": "",
}
_TOKENS = {"e2e": 60, "webnlg": 80, "dart": 80}  # mean of an example, assumed
_WARMUP_STEPS, _BATCH, _EPOCHS = 500, 8, 5
_DIFFERS = {
    "largest gradient norm": ("not printed: 1.0 here", "no clipping"),
    "length penalty in decoding": (0.9, 0.8),
}


def _preset(
    data: str,
    size: str,
    value: float,
    spread: float | None,
    metric: str,
    source: str,
    *,
    rank: int = 4,
    steps: int | None = None,
    script: bool = False,
) -> Preset:
    decay, dropout, smoothing, penalty, examples = _DATA[data]
    total = steps or examples * _EPOCHS // _BATCH
    name = f"{data}-{size}" if steps is None else f"rank-{rank}"
    settings = dict(
        model=dict(name=_MODELS[size]),
        data=dict(
            task="completion",
            name=f"data/{data}",
            recipe="table_to_text",
            fields=dict(table="prompt", text="completion", references="references"),
            prompt="{table}",
            metrics=_METRICS[data],
            max_length=512,
            label_smoothing=smoothing,
            # 64 new tokens: eval_len of the script.
            decoding=dict(
                max_new=64,
                beams=10,
                length_penalty=0.8 if script else penalty,
                no_repeat_ngram=4,
            ),
        ),
        method="lora",
        lora=dict(rank=rank, alpha=32.0, dropout=dropout, targets="query+value"),
        optim=dict(
            learning_rate=2e-4,
            weight_decay=decay,
            schedule="linear",
            warmup_fraction=_WARMUP_STEPS / total,
            **({"clip_norm": 0.0} if script else {}),
        ),
        train=dict(
            batch_size=_BATCH,
            **({"epochs": float(_EPOCHS)} if steps is None else {"total_steps": steps}),
        ),
        sweep=dict(seeds=(0, 1, 2)),
        out=f"runs/papers/lora_gpt2/{name}{'-script' * script}",
    )
    differs = _DIFFERS if name == "e2e-m" else {}
    return Preset(
        settings,
        metric,
        value,
        spread,
        source,
        differs,
        f"data/{data} with train.jsonl, validation.jsonl and test.jsonl",
        "lora-jax evaluate RUN RUN RUN --generate",
        _BEYOND[data],
        examples,
        _TOKENS[data],
    )


PRESETS: dict[str, dict[str, Preset]] = {}
for _size in _MODELS:
    _, _scores, _spreads = TABLE_3[f"{_size} lora"]
    PRESETS[f"e2e-{_size}"] = {
        side: _preset(
            *("e2e", _size, _scores[0], _spreads[0], "BLEU", f"LoRA, Table 3, {_size} lora"),
            script=side == "script",
        )
        for side in (("paper", "script") if _size == "m" else ("paper",))
    }
    PRESETS[f"dart-{_size}"] = {
        "paper": _preset(
            "dart", _size, *TABLE_13[f"{_size} lora"][:2], "BLEU", f"LoRA, Table 13, {_size} lora"
        )
    }
    PRESETS[f"webnlg-{_size}"] = {
        "paper": _preset(
            "webnlg",
            _size,
            TABLE_14[f"{_size} lora"][2],
            None,
            "BLEU, all",
            f"LoRA, Table 14, {_size} lora",
        )
    }
for _rank, _row in TABLE_18.items():
    PRESETS[f"rank-{_rank}"] = {
        "paper": _preset(
            "e2e",
            "m",
            _row[1],
            None,
            "BLEU",
            f"LoRA, Table 18, rank {_rank}",
            rank=_rank,
            steps=26_000,
        )
    }


def get_config(arg: str = "e2e-m") -> ml_collections.ConfigDict:
    """The settings of one data set and size, or of one rank."""
    return config_of(PRESETS, arg)
