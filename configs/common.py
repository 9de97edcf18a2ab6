"""What several configs share: two models with their adapter, and the base of the sweeps.

A config says on top what is its own, group by group: `gemma3(train=dict(epochs=5.0), ...)`. To see
all of one, run it with --dry-run, or read the settings that a command prints when it starts. Who
copies a config to another place takes this file along (`configs/common.py` beside it or above it).
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

T = TypeVar("T")


def minilm(**own: Any) -> ml_collections.ConfigDict:
    """MiniLM-L6 with LoRA of rank 8 on all linear layers."""
    return _with(
        dict(
            model=dict(name="minilm-l6", scan=False),
            method="lora",
            lora=dict(rank=8, alpha=16.0, targets="all-linear"),
            optim=dict(
                learning_rate=1e-3, weight_decay=0.01, schedule="linear", warmup_fraction=0.06
            ),
            train=dict(batch_size=32, eval_batch_size=64),
        ),
        own,
    )


def gemma3(**own: Any) -> ml_collections.ConfigDict:
    """Gemma-3-270M on completions, QLoRA as its paper has it (Table 9), but rank 8 and linear
    decay; another model with --config.model.name.
    """
    return _with(
        dict(
            model=dict(name="gemma3-270m"),
            data=dict(task="completion"),
            method="qlora",
            lora=dict(rank=8, alpha=16.0, targets="all-linear"),
            quant=dict(format="nf4", block_size=64, double=True),
            optim=dict(
                learning_rate=2e-4,
                weight_decay=0.0,
                schedule="linear",
                warmup_fraction=0.03,
                clip_norm=0.3,
            ),
            train=dict(batch_size=8, eval_batch_size=8, log_every=10, checkpoint_every=100),
        ),
        own,
    )


# A few dozen steps on a small file: a larger rate, and a longer warm-up.
SHORT = dict(learning_rate=1e-3, warmup_fraction=0.1, clip_norm=1.0)


def rotten_tomatoes(**own: Any) -> ml_collections.ConfigDict:
    """The base of the sweeps: MiniLM-L6 on Rotten Tomatoes, 100 steps of 32."""
    return _with(
        dict(
            model=dict(name="minilm-l6", scan=False),
            data=dict(name="rotten_tomatoes", text="text", label="label", max_length=128),
            method="lora",
            lora=dict(rank=8, alpha=16.0, scaling="standard", targets="all-linear"),
            optim=dict(
                learning_rate=1e-3,
                weight_decay=0.0,
                schedule="linear",
                warmup_fraction=0.1,
                clip_norm=1.0,
            ),
            train=dict(
                total_steps=100,
                batch_size=32,
                eval_batch_size=64,
                log_every=10,
                checkpoint_every=50,
            ),
        ),
        own,
    )


def chosen(argument: str, table: Mapping[str, T]) -> T:
    """The table's entry for the argument of a config.

    Raises:
        ValueError: there is none; those that there are, are listed.
    """
    if argument not in table:
        raise ValueError(f"the argument must be one of {', '.join(table)}, got {argument!r}")
    return table[argument]


def _with(base: dict[str, Any], own: dict[str, Any]) -> ml_collections.ConfigDict:
    """`base`, with the settings of `own` in their groups."""
    config = ml_collections.ConfigDict(base)
    config.update(own)
    return config
