"""Parameter counts, checkpoint sizes and memory that the papers print, beside what our own modules'
shapes give. No weights are made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn

from lab.small_model import SmallModel
from lora_jax.adapters.sites import Site, find_sites
from lora_jax.adapters.surgery import adapt
from lora_jax.config import TARGETS
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.paths import flatten
from lora_jax.models.kinds import example_inputs, model_of
from lora_jax.models.sizes import SIZES

# QLoRA's memory figure, batch 1, 512 tokens, gradient checkpointing, r = 64 in all layers, MB: base,
# adapters, optimiser (second-hand copies).
MEMORY_MB = {
    "7b": (5046, 298, 1152),
    "13b": (8476, 450, 1800),
    "33b": (19302, 897.5, 3510),
    "65b": (37074, 1440, 5760),
}
# QLoRA's Table 4, NF4 with double quantisation: MMLU of 7B to 65B, tuned on Alpaca, then on FLAN v2.
NF4_MMLU = (39.0, 47.5, 57.3, 61.8, 44.5, 50.7, 59.2, 63.9)

ALL_LINEAR = r"layers/.*/kernel"  # as QLoRA means it: without the embedding and the head


# Names in print, and the presets' ids of the same models.
_IDS = {
    "GPT-3 175B": "gpt3-175b",
    "GPT-2 M": "openai-community/gpt2-medium",
    "GPT-2 L": "openai-community/gpt2-large",
    "RoBERTa-base": "FacebookAI/roberta-base",
    "RoBERTa-large": "FacebookAI/roberta-large",
    "DeBERTa-XXL": "microsoft/deberta-v2-xxlarge",
    "LLaMA 7B": "huggyllama/llama-7b",
    "LLaMA 13B": "huggyllama/llama-13b",
    "LLaMA 33B": "huggyllama/llama-30b",
    "LLaMA 65B": "huggyllama/llama-65b",
}


@functools.cache
def _traced(name: str) -> tuple[nn.Module, dict[str, Any], dict[str, Site]]:
    model = model_of(SmallModel().settings() if name == "S" else SIZES[_IDS[name]])
    inputs = example_inputs(model.config)
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return model, params, find_sites(model, *inputs)


def parameters(name: str) -> int:
    """All parameters of a model."""
    return sum(leaf.size for leaf in flatten(_traced(name)[1]).values())


def lora_parameters(name: str, rank: int, targets: str = TARGETS["query+value"]) -> int:
    """Entries of both factors at the targets."""
    return trained_parameters(name, LoraSpec(rank=rank), targets)


def trained_parameters(name: str, spec: LoraSpec, targets: str) -> int:
    """Entries that an adapter trains at the targets, of a model or of 'S'."""
    model, params, sites = _traced(name)
    trainable = jax.eval_shape(
        lambda p: adapt(model, p, (), lora=[(targets, spec)], key=jax.random.key(0), sites=sites)[
            1
        ],
        params,
    )
    return sum(
        getattr(leaf, field).size for leaf in trainable.values() for field in leaf.trained_fields()
    )


@dataclass(frozen=True)
class Printed:
    """A figure that a paper prints, with the digits it prints, beside the one that follows from
    shapes, in the same unit.
    """

    what: str
    source: str
    printed: str
    unit: float
    count: Callable[[], float]
    follows: bool
    note: str = ""

    def shown(self) -> str:
        """The count with as many digits as the paper prints."""
        digits = len(self.printed.partition(".")[2])
        return f"{self.count() / self.unit:.{digits}f}"


MILLION, GIGA, MIB = 1e6, 1e9, 2.0**20


def _attention(letters: str) -> str:
    return f"layers/attn/({'|'.join(letters)})/kernel"


def _optimiser_18(layers: int, width: int) -> int:
    """Entries of rank-64 factors in all layers of a transformer with two MLP matrices of width 4 d:
    18 d r a layer.
    """
    return 18 * width * 64 * layers


_LLAMA_SHAPES = {"7b": (32, 4096), "13b": (40, 5120), "33b": (60, 6656), "65b": (80, 8192)}

PRINTED: list[Printed] = [
    Printed("GPT-3 175B, all", "LoRA, Table 4", "175255.8", MILLION, lambda: parameters("GPT-3 175B"), False, "no reading of GPT-3's published sizes gives it; a separate head gives 175,221.9"),
    Printed("GPT-2 M, all", "LoRA, Table 3", "354.92", MILLION, lambda: parameters("GPT-2 M"), False, "0.1 M more than GPT-2 medium has"),
    Printed("GPT-2 L, all", "LoRA, Table 3", "774.03", MILLION, lambda: parameters("GPT-2 L"), True),
    Printed("RoBERTa-base, all", "LoRA, Table 2", "125.0", MILLION, lambda: parameters("RoBERTa-base"), False, "rounded to whole millions before the digit was added"),
    Printed("RoBERTa-large, all", "LoRA, Table 2", "355.0", MILLION, lambda: parameters("RoBERTa-large"), False, "likewise"),
    Printed("RoBERTa-base, LoRA r=8", "LoRA, Table 2", "0.3", MILLION, lambda: lora_parameters("RoBERTa-base", 8), True),
    Printed("RoBERTa-large, LoRA r=8", "LoRA, Table 2", "0.8", MILLION, lambda: lora_parameters("RoBERTa-large", 8), True),
    Printed("DeBERTa-XXL, LoRA r=8", "LoRA, Tables 2 and 10", "4.7", MILLION, lambda: lora_parameters("DeBERTa-XXL", 8), False, "Table 10 prints rank 8; the 4.7 M of Table 2 are rank 16, as the released script has"),
    Printed("DeBERTa-XXL, LoRA r=16", "LoRA, released script", "4.7", MILLION, lambda: lora_parameters("DeBERTa-XXL", 16), True),
    Printed("GPT-2 M, LoRA r=4", "LoRA, Table 3", "0.35", MILLION, lambda: lora_parameters("GPT-2 M", 4), False, "0.35 is what a prefix or rank 3.6 would have"),
    Printed("GPT-2 L, LoRA r=4", "LoRA, Table 3", "0.77", MILLION, lambda: lora_parameters("GPT-2 L", 4), False),
    Printed("GPT-3, LoRA v r=2", "LoRA, Table 15", "4.7", MILLION, lambda: lora_parameters("GPT-3 175B", 2, _attention("v")), True),
    Printed("GPT-3, LoRA q+v r=1", "LoRA, Table 15", "4.7", MILLION, lambda: lora_parameters("GPT-3 175B", 1), True),
    Printed("GPT-3, LoRA q+v r=4", "LoRA, Table 15", "18.8", MILLION, lambda: lora_parameters("GPT-3 175B", 4), False, "18.87 cut off, not rounded"),
    Printed("GPT-3, LoRA q+v r=8", "LoRA, Tables 4 and 15", "37.7", MILLION, lambda: lora_parameters("GPT-3 175B", 8), True),
    Printed("GPT-3, LoRA all four r=2", "LoRA, Table 12", "37.7", MILLION, lambda: lora_parameters("GPT-3 175B", 2, _attention("qkvo")), False, "Table 12 prints rank 2; 37.7 M are rank 4, as Table 15 has"),
    Printed("GPT-3, LoRA all four r=4", "LoRA, Table 15", "37.7", MILLION, lambda: lora_parameters("GPT-3 175B", 4, _attention("qkvo")), True),
    Printed("GPT-3, LoRA q+v r=64", "LoRA, Table 15", "301.9", MILLION, lambda: lora_parameters("GPT-3 175B", 64), False, "301.99 cut off"),
    Printed("GPT-3, LoRA all four r=64", "LoRA, Table 15", "603.8", MILLION, lambda: lora_parameters("GPT-3 175B", 64, _attention("qkvo")), False, "twice the printed 301.9"),
    Printed("LLaMA 7B, all", "LLaMA, Table 2", "6.7", GIGA, lambda: parameters("LLaMA 7B"), True),
    Printed("LLaMA 13B, all", "LLaMA, Table 2", "13.0", GIGA, lambda: parameters("LLaMA 13B"), True),
    Printed("LLaMA 33B, all", "LLaMA, Table 2", "32.5", GIGA, lambda: parameters("LLaMA 33B"), True),
    Printed("LLaMA 65B, all", "LLaMA, Table 2", "65.2", GIGA, lambda: parameters("LLaMA 65B"), False, "65.29; the table prints 65.2"),
    Printed("LLaMA 7B, LoRA r=64, all layers", "VeRA (2310.11454)", "159.9", MILLION, lambda: lora_parameters("LLaMA 7B", 64, ALL_LINEAR), True),
    Printed("LLaMA 13B, LoRA r=64, all layers", "VeRA (2310.11454)", "250.3", MILLION, lambda: lora_parameters("LLaMA 13B", 64, ALL_LINEAR), True),
    Printed("NF4 + DQ, mean of the eight scores of its row", "QLoRA, Table 4", "53.1", 1.0, lambda: sum(NF4_MMLU) / len(NF4_MMLU), False, "52.99, below BF16's 53.04 (printed 53.0); FP4's 52.2 follows"),
    # Sizes: bytes.
    Printed("GPT-3 checkpoint in 16 bits", "LoRA, section 4.2", "350", GIGA, lambda: 2 * parameters("GPT-3 175B"), False, "349.2: the printed 350 is 175e9 weights of two bytes"),
    Printed("GPT-3 adapter r=4, q+v, in 16 bits", "LoRA, section 4.2", "35", MILLION, lambda: 2 * lora_parameters("GPT-3 175B", 4), False, "37.7 MB, or 36.0 MiB"),
    Printed("100 adapted GPT-3 models", "LoRA, footnote 4", "354", GIGA, lambda: 2 * 175e9 + 100 * 2 * lora_parameters("GPT-3 175B", 4), True, "with 350 for the base"),
    Printed("65B: double quantisation saves", "QLoRA, section 3", "3", GIGA, lambda: (0.5 - 8 / 64 - 32 / (64 * 256)) / 8 * parameters("LLaMA 65B"), True),
    Printed("7B: LoRA at 0.2 % of the weights, MiB", "QLoRA, section 3", "26", MIB, lambda: 2 * 0.002 * parameters("LLaMA 7B"), True),
    Printed("65B: 16-bit fine-tuning with Adam", "QLoRA, section 1", "780", GIGA, lambda: 12 * parameters("LLaMA 65B"), False, "12 bytes a weight: 783; 780 is 65e9 times 12"),
    *[
        Printed(f"{size}: optimiser, r=64 in all layers, MiB", "QLoRA, memory figure", str(printed[2]), MIB, lambda size=size: 8 * lora_parameters(f"LLaMA {size.upper()}", 64, ALL_LINEAR), False, "8 bytes times 18 d r a layer: two MLP matrices of width 4 d, which is not LLaMA's MLP")
        for size, printed in MEMORY_MB.items()
    ],
    *[
        Printed(f"{size}: optimiser by 18 d r a layer, MiB", "QLoRA, memory figure", str(printed[2]), MIB, lambda size=size: 8 * _optimiser_18(*_LLAMA_SHAPES[size]), True)
        for size, printed in MEMORY_MB.items()
    ],
    *[
        Printed(f"{size}: adapters by 18 d r a layer in 16 bits, MiB", "QLoRA, memory figure", str(printed[1]), MIB, lambda size=size: 2 * _optimiser_18(*_LLAMA_SHAPES[size]), size in ("13b", "65b"), "" if size in ("13b", "65b") else "a quarter of the printed optimiser gives this; the printed number has one digit more by 1 or 2")
        for size, printed in MEMORY_MB.items()
    ],
    Printed("7b: 4-bit base, linear layers in NF4 + DQ, the rest in 16 bits, MB", "QLoRA, section 3 (5,048) and memory figure", "5046", MILLION, lambda: _nf4_bytes("LLaMA 7B"), False, "the printed figure is 6 bits a weight"),
]  # fmt: skip


def _nf4_bytes(name: str) -> float:
    _, params, _ = _traced(name)
    flat = flatten(params)
    linear = sum(
        leaf.size
        for path, leaf in flat.items()
        if path.startswith("layers/") and path.endswith("/kernel")
    )
    rest = sum(leaf.size for leaf in flat.values()) - linear
    return linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 2 * rest


def table() -> list[str]:
    """Markdown of every printed figure that does not follow, with what does."""
    rows = ["| figure | source | printed | from shapes | |", "|---|---|---:|---:|---|"]
    rows += [
        f"| {row.what} | {row.source} | {row.printed} | {row.shown()} | {row.note} |"
        for row in PRINTED
        if not row.follows
    ]
    return rows
