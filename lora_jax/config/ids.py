"""Which settings make a run, and the short hash of them that names it."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

from lora_jax.config.by_path import read_by_path, write_by_path
from lora_jax.config.fields import Config, flatten
from lora_jax.config.limits import resolve_targets
from lora_jax.config.load import to_dict
from lora_jax.config.values import readers

# Settings that name targets, which have several spellings.
_TARGETS = ("lora.targets", "quant.targets", "baseline.full_targets")


def canonical(config: Config) -> dict[str, Any]:
    """What decides the numbers of a run: {dotted key: plain value}, equal for two configs exactly
    if they are the same run.

    Left out is what the method does not read (`ReadBy` on a field or its group: also what changes
    files or memory alone), `train.epochs` when `train.total_steps` is set, `lora.merge_scales`
    without `lora.merge_aware`, and `train.patience` where no best epoch is selected. One run has one
    spelling: named targets are their regexes, exceptions by path have no name, layers and rows are
    sorted, 0 has no sign, and a head's learning rate that equals the others' is None.
    """
    settings = {}
    for key, value in flatten(config).items():
        by = readers(key)
        if by is None or config.method in by:
            # -0.0 equals 0.0 and is written otherwise.
            settings[key] = abs(value) if value == 0 and type(value) is float else to_dict(value)

    if config.train.total_steps is not None:
        del settings["train.epochs"]
    if not config.lora.merge_aware:
        settings.pop("lora.merge_scales", None)
    if config.train.select != "best_epoch":
        settings.pop("train.patience", None)
    if config.optim.head_learning_rate == config.optim.learning_rate:
        settings["optim.head_learning_rate"] = None
    for key in _TARGETS:
        if key in settings:
            settings[key] = resolve_targets(settings[key])
    for key in ("lora.ranks", "quant.formats"):
        if key in settings:
            settings[key] = write_by_path(read_by_path(settings[key]))
    for key in ("lora.layers", "lora.embedding_rows"):
        if settings.get(key) is not None:
            settings[key] = sorted(set(settings[key]))
    return settings


def changed(config: Config) -> dict[str, Any]:
    """The settings of `canonical(config)` that differ from their defaults."""
    defaults = _defaults()
    return {key: value for key, value in canonical(config).items() if value != defaults[key]}


def config_hash(config: Config) -> str:
    """The first 8 hex digits of the sha256 of `changed(config)`: equal for equal runs, and the same
    after a new setting has come.
    """
    text = json.dumps(changed(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache
def _defaults() -> dict[str, Any]:
    """The default of every setting as `canonical` spells it, whatever method reads it."""
    defaults = {key: to_dict(value) for key, value in flatten(Config()).items()}
    for key in _TARGETS:
        defaults[key] = resolve_targets(defaults[key])
    return defaults
