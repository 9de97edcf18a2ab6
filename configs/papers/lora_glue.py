"""LoRA's Table 2: GLUE with RoBERTa and DeBERTa, every LoRA row and the adapters whose settings are
printed.

lora-jax sweep --config configs/papers/lora_glue.py:base-rte
lora-jax sweep --config configs/papers/lora_glue.py:base-rte:script

A name is MODEL-TASK: base, large, large-restricted (the dagger rows), xxl, adapter-p-3m,
adapter-p-0.8m, adapter-h-6m or adapter-h-0.8m, and mnli, sst2, mrpc, cola, qnli, qqp, rte or stsb.
`:paper` is what the paper's tables 9 and 10 print, `:script` what its released scripts say; they
differ, and the difference is printed. The published figure is the median of 5 seeds, the best epoch
each. Any folder of RoBERTa or DeBERTa-v2/v3 goes (--config.model.name); its weights have to be
safetensors. Ours: not run (needs a GPU).
"""

import ml_collections

from published import Preset, config_of
from published.lora import TABLE_2, TASKS

_COLUMNS = {
    "mnli": ("premise", "hypothesis"), "sst2": ("sentence", None), "mrpc": ("sentence1", "sentence2"), "cola": ("sentence", None),
    "qnli": ("question", "sentence"), "qqp": ("question1", "question2"), "rte": ("sentence1", "sentence2"), "stsb": ("sentence1", "sentence2"),
}  # fmt: skip
_METRIC = {"cola": "Matthews correlation", "stsb": "Pearson correlation"}
_METRIC_NAMES = {"cola": ("matthews",), "stsb": ("pearson", "spearman")}
_MODELS = {
    "base": "FacebookAI/roberta-base",
    "large": "FacebookAI/roberta-large",
    "xxl": "microsoft/deberta-v2-xxlarge",
}
# Per task, in the order of TASKS. Tables 9 and 10 of the paper, and examples/NLU of microsoft/LoRA
# at c4593f0.
_ROWS = {
    "base": dict(
        row="base lora", rank=8, alpha=8.0, warmup=0.06, decay=(0.0,) * 8, batch=(16, 16, 16, 32, 32, 16, 32, 16), epochs=(30, 60, 30, 80, 25, 25, 80, 40),
        rate=(5e-4, 5e-4, 4e-4, 4e-4, 4e-4, 5e-4, 5e-4, 4e-4), length=(512,) * 8,
    ),
    "large": dict(
        row="large lora", rank=8, alpha=16.0, warmup=0.06, decay=(0.0,) * 8, batch=(4, 4, 4, 4, 4, 4, 8, 8), epochs=(10, 10, 20, 20, 10, 20, 20, 30),
        rate=(3e-4, 4e-4, 3e-4, 2e-4, 2e-4, 3e-4, 4e-4, 2e-4), length=(128, 128, 512, 128, 512, 512, 512, 512),
    ),
    "large-restricted": dict(
        row="large lora restricted", rank=8, alpha=16.0, warmup=0.06, decay=(0.0,) * 8, batch=(4,) * 8, epochs=(10, 10, 20, 20, 10, 20, 20, 10),
        rate=(3e-4, 4e-4, 3e-4, 2e-4, 2e-4, 3e-4, 4e-4, 2e-4), length=(128,) * 8,
    ),
    "xxl": dict(
        row="xxl lora", rank=8, alpha=8.0, warmup=0.1, decay=(0.0, 0.01, 0.01, 0.0, 0.01, 0.01, 0.01, 0.1), batch=(8, 8, 32, 4, 6, 8, 4, 4),
        epochs=(5, 16, 30, 10, 8, 11, 11, 10), rate=(1e-4, 6e-5, 2e-4, 1e-4, 1e-4, 1e-4, 2e-4, 2e-4), length=(256, 128, 128, 64, 512, 320, 320, 128),
    ),
}  # fmt: skip
_ADAPTERS = {
    "adapter-p-3m": dict(row="large adapter-p 3m", kind="pfeiffer", size=64, epochs=(10, 20, 20, 20, 10, 20, 20, 20), rate=(3e-5, 3e-5, *(3e-4,) * 6)),
    "adapter-p-0.8m": dict(row="large adapter-p 0.8m", kind="pfeiffer", size=16, epochs=(5, 20, 20, 20, 10, 20, 20, 20), rate=(3e-4,) * 8),
    "adapter-h-6m": dict(row="large adapter-h 6m", kind="houlsby", size=64, epochs=(10, 5, 10, 10, 5, 20, 20, 10), rate=(3e-5, *(3e-4,) * 7)),
    "adapter-h-0.8m": dict(row="large adapter-h 0.8m", kind="houlsby", size=8, epochs=(10, 5, 10, 10, 5, 20, 20, 10), rate=(3e-4,) * 8),
}  # fmt: skip
_FROM_MNLI = ("mrpc", "rte", "stsb")


def _script(model: str, task: str) -> dict:
    """What the released scripts say otherwise, by name of a setting."""
    paper, n = _ROWS[model], TASKS.index(task)
    if model == "base":
        return {
            "alpha": 16.0,
            "batch": paper["batch"][n] * (2 if task == "cola" else 8),
            "decay": 0.1,
        }
    if model == "large":
        size = 8 if task == "sst2" else 4 if task == "stsb" else paper["batch"][n]
        changed = {"batch": size * 8, "decay": 0.1}
        if task in ("cola", "stsb"):
            changed["rate"] = 3e-4
        return changed | ({"epochs": 10, "length": 128} if task == "stsb" else {})
    if model == "xxl":
        return {"rank": 16, "alpha": 32.0} | {
            "cola": {"rate": 1.3e-4},
            "rte": {"rate": 2.6e-4},
        }.get(task, {})
    return {}


def _data(task: str, max_length: int) -> dict:
    text, pair = _COLUMNS[task]
    kind = "regression" if task == "stsb" else "classification"
    fields = (
        dict(text=text)
        | (dict(text_pair=pair) if pair else {})
        | {"score" if task == "stsb" else "label": "label"}
    )
    metrics = _METRIC_NAMES.get(task, ("accuracy",))
    return dict(
        name=f"glue/{task}",
        recipe=f"pair_{kind}" if pair else kind,
        fields=fields,
        metrics=metrics,
        max_length=max_length,
    )


def _settings(model: str, task: str, values: dict, **method) -> dict:
    return dict(
        model=dict(name=_MODELS[model.partition("-")[0]]),
        data=_data(task, values["length"]),
        **(
            method
            or dict(
                method="lora",
                lora=dict(rank=values["rank"], alpha=values["alpha"], targets="query+value"),
            )
        ),
        optim=dict(
            learning_rate=values["rate"],
            weight_decay=values["decay"],
            schedule="linear",
            warmup_fraction=values["warmup"],
        ),
        train=dict(epochs=float(values["epochs"]), batch_size=values["batch"]),
        sweep=dict(seeds=(0, 1, 2, 3, 4)),
        out=f"runs/papers/lora_glue/{model}-{task}",
    )


def _needs(model: str, task: str) -> str:
    return (
        "a start from the best MNLI adapter"
        if task in _FROM_MNLI and model in ("base", "large", "xxl")
        else ""
    )


def _row(model: str, task: str) -> dict[str, Preset]:
    raw, n = _ROWS[model], TASKS.index(task)
    paper = {name: value[n] if isinstance(value, tuple) else value for name, value in raw.items()}
    script = paper | _script(model, task)
    _, scores, spreads = TABLE_2[raw["row"]]
    differs = {name: (paper[name], script[name]) for name in paper if paper[name] != script[name]}
    if model == "xxl":
        differs["warmup"] = ("ratio 0.1", "50 to 10,000 steps by task (MRPC ratio 0.1)")
    make = lambda side, values: Preset(
        _settings(model, task, values) | {"out": f"runs/papers/lora_glue/{model}-{task}-{side}"},
        _METRIC.get(task, "accuracy"), scores[n], spreads[n], f"LoRA, Table 2, {raw['row']}, {task}", differs, _needs(model, task),
    )  # fmt: skip
    return {"paper": make("paper", paper)} | ({"script": make("script", script)} if differs else {})


def _adapter(name: str, task: str) -> dict[str, Preset]:
    raw, n = _ADAPTERS[name], TASKS.index(task)
    values = dict(
        rate=raw["rate"][n], epochs=raw["epochs"][n], batch=32, decay=0.0, warmup=0.06, length=128
    )
    settings = _settings(
        "large",
        task,
        values,
        method="bottleneck",
        baseline=dict(kind=raw["kind"], size=raw["size"]),
    )
    _, scores, spreads = TABLE_2[raw["row"]]
    settings["out"] = f"runs/papers/lora_glue/{name}-{task}"
    preset = Preset(
        settings,
        _METRIC.get(task, "accuracy"),
        scores[n],
        spreads[n],
        f"LoRA, Table 2, {raw['row']}, {task}",
        {},
        _needs("large-restricted", task),
    )
    return {"paper": preset}


PRESETS = {f"{model}-{task}": _row(model, task) for model in _ROWS for task in TASKS}
PRESETS |= {f"{name}-{task}": _adapter(name, task) for name in _ADAPTERS for task in TASKS}


def get_config(arg: str = "base-sst2") -> ml_collections.ConfigDict:
    """The settings of one row and task, on the paper's or the scripts' side."""
    return config_of(PRESETS, arg)
