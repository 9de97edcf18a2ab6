"""MiniLM-L6, a real pretrained encoder, on the sentiment of Rotten Tomatoes' sentences."""

from __future__ import annotations

from typing import Any

from lora_jax.config import Config, from_config_dict

LENGTH = 32  # tokens of a sentence; one in six is longer, and cut


def tuning(**changes: Any) -> Config:
    """The settings that claims on MiniLM share: 100 steps of 16 sentences, a constant rate, no
    decay. `changes` by dotted key.
    """
    values: dict[str, Any] = {
        "model": {"name": "minilm-l6", "scan": True},
        "data": {"name": "rotten_tomatoes", "max_length": LENGTH, "buckets": (LENGTH,)},
        "method": "lora",
        "lora": {"rank": 8, "alpha": 16.0, "targets": "all-linear"},
        "optim": {
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup_fraction": 0.0,
            "learning_rate": 1e-3,
        },
        "train": {
            "total_steps": 100,
            "batch_size": 16,
            "eval_batch_size": 64,
            "eval_examples": 256,
            "log_every": 10,
            "checkpoint_every": 10_000,
            "sinks": (),
        },
        "out": "runs/claims",
    }
    return from_config_dict(changed(values, changes))


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some set by dotted key."""
    for key, value in changes.items():
        *groups, leaf = key.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    return values
