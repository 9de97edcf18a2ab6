"""What is trained and how fast: labels on the trainable tree, and the optax transformation built on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optax

from lora_jax.adapt.apply import Lora
from lora_jax.config import OptimConfig
from lora_jax.core.lowrank import LowRank, array_fields
from lora_jax.train.variants import adalora, precondition_b

Trainable = dict[str, Any]


def partition(lora: Lora) -> tuple[Trainable, Trainable]:
    """The arrays that are trained and those that are not (scale, dropout, fixed factors), each with None where the other has one."""
    trained = {path: leaf.replace(**dict.fromkeys(set(array_fields(leaf)) - set(leaf.trained_fields()))) for path, leaf in lora.items()}
    fixed = {path: leaf.replace(**dict.fromkeys(leaf.trained_fields())) for path, leaf in lora.items()}
    return trained, fixed


def combine(trained: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `partition`."""
    return {path: leaf.replace(**{name: getattr(trained[path], name) for name in _given(trained[path])}) for path, leaf in fixed.items()}


def labels(trained: Trainable) -> Any:
    """'a', 'b', 'vector' (magnitudes and gains), 'whole' or 'module' for each trained array: the handle for learning rates and masks."""
    return {path: leaf.replace(**{name: label_of(leaf, name) for name in _given(leaf)}) for path, leaf in trained.items()}


def label_of(leaf: Any, name: str) -> str:
    """The label of one array of a trainable leaf."""
    if isinstance(leaf, LowRank):
        return name if name in ("a", "b") else "vector"
    return getattr(leaf, "label", "whole")


def _given(leaf: Any) -> tuple[str, ...]:
    return tuple(name for name in array_fields(leaf) if getattr(leaf, name) is not None)


def decay_mask(trained: Trainable) -> Any:
    """Which arrays weight decay acts on: all but biases, the scales of norms, magnitudes, gains and prefix states."""
    out = {}
    for path, leaf in trained.items():
        decays = path.rpartition("/")[2] not in ("bias", "scale")
        out[path] = leaf.replace(**{name: decays and _is_matrix(leaf, name) for name in _given(leaf)})
    return out


def _is_matrix(leaf: Any, name: str) -> bool:
    label = label_of(leaf, name)
    return name in ("down", "up") if label == "module" else label != "vector"


def unit_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """The learning rate's shape: rises linearly to 1 over the warm-up, then falls to 0 (linear, cosine) or stays.

    The first step already moves: at step 0 of w warm-up steps the factor is 1 / w. Total and warm-up are counted in steps.
    """
    warmup = math.ceil(config.warmup_fraction * total_steps)
    rest = max(total_steps - warmup, 1)
    falls = {
        "linear": optax.linear_schedule(1.0, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(1.0, rest),
        "constant": optax.constant_schedule(1.0),
    }
    if not warmup:
        return falls[config.schedule]
    return optax.join_schedules([optax.linear_schedule(1 / warmup, 1.0, max(warmup - 1, 1)), falls[config.schedule]], [warmup])


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW on the trained tree with one learning rate a label; `b` gets `lora_plus_ratio` times that of `a` (LoRA+, Hayou et al. 2024).

    `precondition_b` rescales the gradient of `b` (LoRA-FA as PEFT has it); `adalora.target_rank` turns AdaLoRA's budget on.

    Learning rates live in the optimiser's state, so runs that differ in them share one compiled program.
    """
    rates = {
        "a": config.learning_rate,
        "b": config.learning_rate * config.lora_plus_ratio,
        "vector": config.learning_rate,
        "module": config.learning_rate,
        "whole": config.learning_rate if config.head_learning_rate is None else config.head_learning_rate,
    }
    scale = optax.inject_hyperparams(optax.scale_by_learning_rate)
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        precondition_b() if config.precondition_b else optax.identity(),
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decay_mask) if config.weight_decay else optax.identity(),
        optax.scale_by_schedule(unit_schedule(config, total_steps)),
        optax.partition({label: scale(learning_rate=rate) for label, rate in rates.items()}, labels),
    )
    return adalora(tx, config.adalora, total_steps) if config.adalora.target_rank is not None else tx
