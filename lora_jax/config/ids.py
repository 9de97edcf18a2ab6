"""Which settings make a run, and the short hash of them that names it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lora_jax.config.fields import ADAPTERS, Config, QuantConfig, resolve_targets
from lora_jax.config.load import from_config_dict, to_dict

_LATER = ("second_level", "scale_dtype")


def canonical(config: Config) -> dict[str, Any]:
    """What decides the numbers of a run, as a plain dict: equal for two configs exactly if they are
    the same run.

    Left out: `out`, `sweep`, `memory_budget` (what it chooses stands in other settings), `offload`
    (where arrays wait), `train.log_every`, `train.checkpoint_every` (they change files, not
    results), groups that the method does not read, and `epochs` when `total_steps` is set.
    `eval_every` stays: the validation curve is a result. Named targets are replaced by their
    regexes, and a head learning rate of None by the learning rate.
    """
    values = to_dict(from_config_dict(to_dict(config)))
    for key in ("out", "sweep", "memory_budget"):
        del values[key]
    del values["model"]["offload"], values["optim"]["offload"]
    for key in ("log_every", "checkpoint_every") + (
        ("epochs",) if config.train.total_steps is not None else ()
    ):
        del values["train"][key]
    if config.optim.head_learning_rate is None:
        values["optim"]["head_learning_rate"] = values["optim"]["learning_rate"]
    if config.method not in ADAPTERS:
        del (
            values["lora"],
            values["optim"]["lora_plus_ratio"],
            values["optim"]["adalora"],
            values["optim"]["precondition_b"],
        )
    if config.method in ("full", "head", "bitfit", *ADAPTERS):
        del values["baseline"]
    if config.method in ADAPTERS:
        values["lora"]["targets"] = resolve_targets(config.lora.targets)
    if config.method == "qlora":
        values["quant"]["targets"] = resolve_targets(config.quant.targets)
        for key in _LATER:  # They came later: runs that do not use them keep their names.
            if values["quant"][key] == getattr(QuantConfig, key):
                del values["quant"][key]
    else:
        del values["quant"]
    return values


def config_hash(config: Config) -> str:
    """The first 8 hex digits of the sha256 of `canonical(config)`: equal for equal runs, whatever
    the order of keys.
    """
    text = json.dumps(canonical(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
