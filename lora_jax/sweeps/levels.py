"""What differs between the cells of a sweep: its axes, whatever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_jax.sweeps.cells import Cell
from lora_jax.sweeps.settings import differing, settings_of

# Settings that a cell itself carries, with the words of a report.
_OWN = ("rank", "format", "targets")
_OWN_KEYS = {"lora.rank", "quant.format", "lora.targets", "method"}
_WORDS = {
    "optim.learning_rate": "learning rate", "quant.block_size": "block size", "lora.init": "initialisation", "model.name": "model",
    "data.name": "data", "data.content": "data content", "model.content": "model content", "lora.alpha": "alpha", "quant.double": "double quantisation", "lora.variant": "variant",
}  # fmt: skip
# Axes over whose levels a mean says nothing, and what to call several of them.
UNLIKE = {
    "data": "data sets",
    "model": "models",
    "data content": "contents of the data",
    "model content": "contents of the model",
}


def axes(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """{axis: its level in each cell} of all settings in which these cells differ: rank, format and
    targets first, in this order.
    """
    own = {name: [getattr(cell, name) for cell in cells] for name in _OWN}
    settings = [settings_of(cell.runs[0])[1] for cell in cells]
    varied = differing(settings, [cell.format != "fp32" for cell in cells])
    others = {key: column for key, column in varied.items() if key not in _OWN_KEYS}
    found = {name: column for name, column in own.items() if len(set(column)) > 1}
    return found | {_word(key, others): column for key, column in others.items()}


def levels(column: Sequence[Any]) -> list[Any]:
    """The different levels: numbers by size, the rest in the order of their first cell."""
    different = list(dict.fromkeys(column))
    numbers = [
        level
        for level in different
        if isinstance(level, (int, float)) and not isinstance(level, bool)
    ]
    return sorted(numbers) + [level for level in different if level not in numbers]


def shown(level: Any) -> str:
    """A level as people write it."""
    return f"{level:g}" if isinstance(level, float) else str(level)


def _word(key: str, others: Mapping[str, Any]) -> str:
    leaf = key.rpartition(".")[2].replace("_", " ")
    alone = sum(other.rpartition(".")[2] == key.rpartition(".")[2] for other in others) == 1
    return _WORDS.get(key, leaf if alone else key)
