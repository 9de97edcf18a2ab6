"""What is trained and how fast: labels on the trainable tree, and the optax transformation built on
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from lora_jax.adapters.apply import Trainables
from lora_jax.config import OptimConfig
from lora_jax.core.host import can_offload
from lora_jax.core.lowrank import LowRank, array_fields
from lora_jax.training.adam8bit import scale_by_adam8bit
from lora_jax.training.offload import in_host_memory
from lora_jax.training.variants import adalora, precondition_b

Trainable = dict[str, Any]


def partition(trainable: Trainables) -> tuple[Trainable, Trainable]:
    """The arrays that are trained and those that are not (scale, dropout, fixed factors), each with
    None where the other has one.
    """
    trained = {
        path: leaf.replace(**dict.fromkeys(set(array_fields(leaf)) - set(leaf.trained_fields())))
        for path, leaf in trainable.items()
    }
    fixed = {
        path: leaf.replace(**dict.fromkeys(leaf.trained_fields()))
        for path, leaf in trainable.items()
    }
    return trained, fixed


def combine(trained: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `partition`."""
    return {
        path: leaf.replace(**{name: getattr(trained[path], name) for name in _given(trained[path])})
        for path, leaf in fixed.items()
    }


def labels(trained: Trainable) -> Any:
    """'a', 'b', 'vector' (magnitudes and gains), 'whole' or 'module' for each trained array: the
    handle for learning rates and masks.
    """
    return {
        path: leaf.replace(**{name: label_of(leaf, name) for name in _given(leaf)})
        for path, leaf in trained.items()
    }


def label_of(leaf: Any, name: str) -> str:
    """The label of one array of a trainable leaf."""
    if isinstance(leaf, LowRank):
        return name if name in ("a", "b") else "vector"
    return getattr(leaf, "label", "whole")


def _given(leaf: Any) -> tuple[str, ...]:
    return tuple(name for name in array_fields(leaf) if getattr(leaf, name) is not None)


def decay_mask(trained: Trainable) -> Any:
    """Which arrays weight decay acts on: all but biases, the scales of norms, magnitudes, gains and
    prefix states.
    """
    out = {}
    for path, leaf in trained.items():
        decays = path.rpartition("/")[2] not in ("bias", "scale")
        out[path] = leaf.replace(
            **{name: decays and _is_matrix(leaf, name) for name in _given(leaf)}
        )
    return out


def _is_matrix(leaf: Any, name: str) -> bool:
    label = label_of(leaf, name)
    return name in ("down", "up") if label == "module" else label != "vector"


def unit_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """The learning rate's shape: rises linearly to 1 over the warm-up, then falls to 0 (linear,
    cosine) or stays.

    The first step already moves: at step 0 of w warm-up steps the factor is 1 / w. Total and
        warm-up are counted in steps.
    """
    shape = _shape_of(config, total_steps)
    return lambda step: _factor(shape._replace(count=jnp.asarray(step)))


def structure_of(config: OptimConfig) -> OptimConfig:
    """The same optimiser with every number that is data (rates, decay, clipping, schedule) at one
    value: what a program depends on.
    """
    return replace(
        config,
        learning_rate=1.0,
        head_learning_rate=None,
        lora_plus_ratio=1.0,
        weight_decay=0.0,
        clip_norm=0.0,
        schedule="linear",
        warmup_fraction=0.0,
    )


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW on the trained tree with one learning rate a label; `b` gets `lora_plus_ratio` times
    that of `a` (LoRA+, Hayou et al. 2024).

    `name` adamw8bit keeps the large moments in 8 bits; `offload` keeps the state in host memory
    between steps. `precondition_b` rescales the gradient of `b` (LoRA-FA as PEFT has it);
    `adalora.target_rank` turns AdaLoRA's budget on.

    Learning rates, weight decay, the clipping norm and the schedule's numbers live in the
    optimiser's state: runs that differ in them share one compiled program, or are trained side by
    side in one. The update reads them from the state it is given.
    """
    rates = {
        "a": config.learning_rate,
        "b": config.learning_rate * config.lora_plus_ratio,
        "vector": config.learning_rate,
        "module": config.learning_rate,
        "whole": config.learning_rate
        if config.head_learning_rate is None
        else config.head_learning_rate,
    }
    scale = optax.inject_hyperparams(optax.scale_by_learning_rate)
    tx = optax.chain(
        # A norm is below infinity, or is not finite itself: no clipping.
        _from_number(config.clip_norm or math.inf, optax.clip_by_global_norm),
        precondition_b() if config.precondition_b else optax.identity(),
        _ADAMS[config.name](config.beta1, config.beta2, config.eps),
        _from_number(
            config.weight_decay, lambda decay: optax.add_decayed_weights(decay, decay_mask)
        ),
        _scheduled(config, total_steps),
        optax.partition(
            {label: scale(learning_rate=rate) for label, rate in rates.items()}, labels
        ),
    )
    tx = adalora(tx, config.adalora, total_steps) if config.adalora.target_rank is not None else tx
    return in_host_memory(tx) if config.offload and can_offload() else tx


_ADAMS = {"adamw": optax.scale_by_adam, "adamw8bit": scale_by_adam8bit}


class Number(NamedTuple):
    """A number of the optimiser that is data."""

    value: Array


def _from_number(
    value: float, make: Callable[[Any], optax.GradientTransformation]
) -> optax.GradientTransformation:
    """The transformation `make(number)`, whose number stands in the state."""

    def update(updates: Any, state: Number, params: Any = None) -> tuple[Any, Number]:
        tx = make(state.value)
        return tx.update(updates, tx.init(params), params)[0], state

    return optax.GradientTransformation(lambda params: Number(jnp.float32(value)), update)


class Shape(NamedTuple):
    """Where a schedule is, and its numbers: steps taken, steps of the warm-up and in all, and which
    curve follows the warm-up.
    """

    count: Array
    warmup: Array
    total: Array
    curve: Array


_CURVES = ("linear", "cosine", "constant")


def _shape_of(config: OptimConfig, total_steps: int) -> Shape:
    numbers = (
        0,
        math.ceil(config.warmup_fraction * total_steps),
        total_steps,
        _CURVES.index(config.schedule),
    )
    return Shape(*(jnp.int32(number) for number in numbers))


def _factor(shape: Shape) -> Array:
    step, warmup = shape.count.astype(jnp.float32), shape.warmup.astype(jnp.float32)
    fallen = jnp.clip((step - warmup) / jnp.maximum(shape.total - shape.warmup, 1), 0.0, 1.0)
    curves = jnp.stack([1 - fallen, (1 + jnp.cos(jnp.pi * fallen)) / 2, jnp.ones_like(fallen)])
    return jnp.where(
        shape.count < shape.warmup, (step + 1) / jnp.maximum(warmup, 1), curves[shape.curve]
    )


def _scheduled(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Scaling by the schedule's factor at each step."""

    def update(updates: Any, state: Shape, params: Any = None) -> tuple[Any, Shape]:
        factor = _factor(state)
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state._replace(
            count=state.count + 1
        )

    return optax.GradientTransformation(lambda params: _shape_of(config, total_steps), update)
