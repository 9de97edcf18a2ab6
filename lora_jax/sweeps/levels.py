"""What differs between the cells of a sweep: its axes, whatever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_jax.sweeps.cells import Cell, settings_of

# Settings that a cell itself carries, with the words of a report.
_OWN = ("rank", "format", "targets")
_OWN_KEYS = {"lora.rank", "quant.format", "lora.targets", "method"}
_WORDS = {
    "optim.learning_rate": "learning rate", "quant.block_size": "block size", "lora.init": "initialisation", "model.name": "model",
    "data.name": "data", "lora.alpha": "alpha", "quant.double": "double quantisation", "lora.variant": "variant",
}  # fmt: skip
# the level of a setting that a run does not read, such as the block size of a base that is not
# quantised
NOT_READ = "–"


def axes(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """{axis: its level in each cell} of all settings in which these cells differ: rank, format and
    targets first, in this order.
    """
    own = {name: [getattr(cell, name) for cell in cells] for name in _OWN}
    settings = [settings_of(cell.runs[0].config)[1] for cell in cells]
    keys = [
        key
        for key in dict.fromkeys(key for setting in settings for key in setting)
        if key not in _OWN_KEYS
    ]
    columns = {key: [setting.get(key, NOT_READ) for setting in settings] for key in keys}
    varied = {key: column for key, column in columns.items() if len(set(map(str, column))) > 1}
    # Follows the learning rate unless it was set: then it would be the same axis twice.
    if varied.get("optim.head_learning_rate") == columns.get("optim.learning_rate"):
        varied.pop("optim.head_learning_rate", None)
    if "format" in own and len(set(own["format"])) > 1:
        varied = {
            key: column
            for key, column in varied.items()
            if not _says_only_quantised(key, column, own["format"])
        }
    found = {name: column for name, column in own.items() if len(set(column)) > 1}
    return found | {_word(key, varied): column for key, column in varied.items()}


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


def _says_only_quantised(key: str, column: Sequence[Any], formats: Sequence[Any]) -> bool:
    """Whether a quantisation setting differs only in that unquantised cells lack it."""
    read = {str(level) for level, format in zip(column, formats, strict=True) if format != "fp32"}
    return key.startswith("quant.") and len(read) < 2


def _word(key: str, others: Mapping[str, Any]) -> str:
    leaf = key.rpartition(".")[2].replace("_", " ")
    alone = sum(other.rpartition(".")[2] == key.rpartition(".")[2] for other in others) == 1
    return _WORDS.get(key, leaf if alone else key)
