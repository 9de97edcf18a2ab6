"""QLoRA's Tables 3, 4 and 5: 4-bit bases with LoRA on every linear layer.

lora-jax train --config configs/papers/qlora.py:table4-7b-alpaca-nf4
lora-jax train --config configs/papers/qlora.py:table5-7b-oasst1:script

Names: table3-MODEL-FORMAT (bf16, int8, fp4, nf4), table4-SIZE-DATA-FORMAT and table5-SIZE-DATA.
Settings are those of the paper's Table 9: rank 64, alpha 16, all linear layers, constant rate,
gradients clipped at 0.3; Table 3 prints no rate, decay, batch or steps, and its rows have the
defaults of this library, which each says when it starts. `:script` is what the released
finetune_guanaco_SIZE.sh say (artidoro/qlora at 0b46ca8). The score is 5-shot MMLU (Tables 4 and 5),
which is another tool's to measure; of Table 3's T5 models it is RougeL, which `lora-jax evaluate
RUN --generate` gives. Ours: not run.
"""

import ml_collections

from published import Preset, config_of
from published.qlora import SIZES, TABLE_3, TABLE_3_MODELS, TABLE_4, TABLE_5

# Learning rate, batch, steps, adapter dropout (Table 9); OASST1 has a batch and steps of its own.
_SIZES = {
    "7b": (2e-4, 16, 10_000, 0.1),
    "13b": (2e-4, 16, 10_000, 0.1),
    "33b": (1e-4, 32, 5_000, 0.05),
    "65b": (1e-4, 64, 2_500, 0.05),
}
_OASST1 = (16, 1_875)
_UNCHECKED = {
    "longform": "; its lengths and steps are those of the other sets, and were not checked"
}
_WEIGHTS = {size: f"huggyllama/llama-{'30b' if size == '33b' else size}" for size in SIZES}
_T5 = {
    "t5-80m": ("small", 16),
    "t5-250m": ("base", 16),
    "t5-780m": ("large", 16),
    "t5-3b": ("xl", 64),
    "t5-11b": ("xxl", 64),
}


def _quant(format: str) -> dict:
    """Method and storage of the base; bf16 is LoRA on the base as it was loaded."""
    if format in ("bf16", "lora bf16"):
        return dict(method="lora", model_dtype="bfloat16")
    return dict(
        method="qlora",
        model_dtype="bfloat16",
        quant=dict(format=format, block_size=64, double=format == "nf4"),
    )


def _llama(
    name: str, size: str, data: str, format: str, value: float, source: str
) -> dict[str, Preset]:
    rate, batch, steps, dropout = _SIZES[size]
    oasst = data == "oasst1"
    batch, steps = _OASST1 if oasst else (batch, steps)
    storage = _quant(format)
    dtype = storage.pop("model_dtype")

    def make(side: str, length: int, differs: dict, warmup: float) -> Preset:
        settings = dict(
            model=dict(name=_WEIGHTS[size], remat=True, compute_dtype=dtype),
            data=dict(
                task="completion",
                name=f"data/{data}.jsonl",
                text="prompt",
                label="completion",
                max_length=length,
            ),
            **storage,
            lora=dict(rank=64, alpha=16.0, dropout=dropout, targets="all-linear"),
            optim=dict(
                learning_rate=rate,
                weight_decay=0.0,
                schedule="constant",
                warmup_fraction=warmup,
                clip_norm=0.3,
            ),
            train=dict(total_steps=steps, batch_size=batch, accumulate=batch),
            out=f"runs/papers/qlora/{name}-{side}",
        )
        return Preset(
            settings,
            "5-shot MMLU",
            value,
            None,
            source,
            differs,
            f"{data} as data/{data}.jsonl, and MMLU" + _UNCHECKED.get(data, ""),
        )

    target = 512 if oasst else 768 if data == "hh-rlhf" else 128
    differs = (
        {
            "source tokens": (384, 16),
            "target tokens": (target, 512),
            "warmup": ("not printed", 0.03),
        }
        if oasst
        else {}
    )
    paper = {"paper": make("paper", 384 + target, differs, 0.0)}
    return paper | ({"script": make("script", 16 + 512, differs, 0.03)} if differs else {})


def _table3(name: str, model: str, format: str, value: float) -> dict[str, Preset]:
    storage = _quant(format)
    dtype = storage.pop("model_dtype")
    glue = model == "roberta-large"
    size, rank = _T5.get(model, ("", 8))
    pair = dict(
        name="glue/mnli",
        recipe="pair_classification",
        fields=dict(text="premise", text_pair="hypothesis", label="label"),
    )
    # 1024 tokens of source and 128 of target, as in the data set's own scripts (Tk-Instruct).
    text = dict(
        task="completion",
        name="data/super-natural-instructions.jsonl",
        recipe="completion",
        metrics=("rouge_l",),
        max_length=1152,
    )
    settings = dict(
        model=dict(
            name="FacebookAI/roberta-large" if glue else f"google/t5-v1_1-{size}",
            compute_dtype=dtype,
        ),
        data=pair | dict(metrics=("accuracy",))
        if glue
        else text | dict(decoding=dict(max_new=128)),
        **storage,
        lora=dict(rank=rank, alpha=16.0 if glue else 64.0, targets="all-linear"),
        out=f"runs/papers/qlora/{name}",
    )
    needs = (
        "the mean over GLUE's tasks, of which this is MNLI"
        if glue
        else "Super-NaturalInstructions as data/super-natural-instructions.jsonl"
    )
    return {
        "paper": Preset(
            settings,
            "GLUE mean" if glue else "RougeL",
            value,
            None,
            f"QLoRA, Table 3, {format}",
            {"rate, decay, batch and epochs": ("not printed: the defaults here", "none released")},
            needs,
        )
    }


PRESETS: dict[str, dict[str, Preset]] = {}
for _format, _short in (("lora bf16", "bf16"), ("int8", "int8"), ("fp4", "fp4"), ("nf4", "nf4")):
    for _model, _value in zip(TABLE_3_MODELS, TABLE_3[_format]):
        if _value is not None:
            PRESETS[f"table3-{_model}-{_short}"] = _table3(
                f"table3-{_model}-{_short}", _model, _format, _value
            )
for _format, _by_data in TABLE_4.items():
    for _data, _values in _by_data.items():
        for _size, _value in zip(SIZES, _values):
            _name = f"table4-{_size}-{_data}-{_format}"
            PRESETS[_name] = _llama(
                _name, _size, _data, _format, _value, f"QLoRA, Table 4, {_format}"
            )
for _data, _values in TABLE_5.items():
    for _size, _value in zip(SIZES, _values):
        if _data != "none":
            _name = f"table5-{_size}-{_data}"
            PRESETS[_name] = _llama(_name, _size, _data, "nf4", _value, f"QLoRA, Table 5, {_data}")


def get_config(arg: str = "table4-7b-alpaca-nf4") -> ml_collections.ConfigDict:
    """The settings of one row and column."""
    return config_of(PRESETS, arg)
