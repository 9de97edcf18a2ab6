"""What is trained and how fast: labels on the trainable tree, and the optax transformation built on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax

from lora_jax.adapt.apply import Lora
from lora_jax.config import OptimConfig
from lora_jax.core.boxes import Whole

Trainable = dict[str, Any]


def partition(lora: Lora) -> tuple[Trainable, Trainable]:
    """The leaves that are trained and those that are not (scale, dropout), each with None where the other has a leaf."""
    trained = {path: leaf if isinstance(leaf, Whole) else leaf.replace(scale=None, dropout=None) for path, leaf in lora.items()}
    fixed = {path: leaf.replace(value=None) if isinstance(leaf, Whole) else leaf.replace(a=None, b=None) for path, leaf in lora.items()}
    return trained, fixed


def combine(trained: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `partition`."""
    return {
        path: leaf if isinstance(leaf, Whole) else leaf.replace(scale=fixed[path].scale, dropout=fixed[path].dropout)
        for path, leaf in trained.items()
    }


def labels(trained: Trainable) -> Any:
    """'a', 'b' or 'whole' for each trained leaf: the handle for learning rates, freezing and masks."""
    return {path: leaf.replace(value="whole") if isinstance(leaf, Whole) else leaf.replace(a="a", b="b") for path, leaf in trained.items()}


def decay_mask(trained: Trainable) -> Any:
    """Which leaves weight decay acts on: all but biases and the scales of norms."""
    out = {}
    for path, leaf in trained.items():
        decays = path.rpartition("/")[2] not in ("bias", "scale")
        out[path] = jax.tree.map(lambda _, decays=decays: decays, leaf)
    return out


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

    Learning rates live in the optimiser's state, so runs that differ in them share one compiled program.
    """
    rates = {
        "a": config.learning_rate,
        "b": config.learning_rate * config.lora_plus_ratio,
        "whole": config.learning_rate if config.head_learning_rate is None else config.head_learning_rate,
    }
    scale = optax.inject_hyperparams(optax.scale_by_learning_rate)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decay_mask) if config.weight_decay else optax.identity(),
        optax.scale_by_schedule(unit_schedule(config, total_steps)),
        optax.partition({label: scale(learning_rate=rate) for label, rate in rates.items()}, labels),
    )
