"""What is trained and how fast: the optax transformation of the trained tree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lora_jax.config import OptimConfig
from lora_jax.core.host import can_offload
from lora_jax.core.trainable import given_fields, trainable_labels
from lora_jax.training.adam8bit import scale_by_adam8bit
from lora_jax.training.by_layers import by_layers
from lora_jax.training.factor_optimizers import (
    beside,
    on_product,
    scale_by_lora_muon,
    scale_by_rite,
)
from lora_jax.training.offload import in_host_memory, shapes_in_host_memory
from lora_jax.training.variants import adalora, precondition_b


def decay_mask(trained: Mapping[str, Any]) -> Any:
    """Which arrays weight decay acts on: all but biases, the scales of norms, magnitudes, gains and
    prefix states.
    """
    out = {}
    for path, leaf in trained.items():
        decays = path.rpartition("/")[2] not in ("bias", "scale")
        fields = {name: decays and leaf.decays(name) for name in given_fields(leaf)}
        out[path] = leaf.replace(**fields)
    return out


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
    between steps. `factors` moves pairs of factors by their product, and what else is trained by
    Adam (`lora_jax.training.factor_optimizers`). `precondition_b` rescales the gradient of `b`
    (LoRA-FA as PEFT has it); `adalora.target_rank` turns AdaLoRA's budget on.

    Learning rates, weight decay, the clipping norm and the schedule's numbers are data: `init`
    writes this config's into the optimiser's state, and `update` reads them from the state it is
    given, whatever config it was made from. So runs that differ in them share one compiled step,
    built from `structure_of(config)` with rates of 1, and each brings its own in its state.
    """
    rate, head = config.learning_rate, config.head_learning_rate
    rates = dict(a=rate, b=rate * config.lora_plus_ratio, vector=rate, module=rate)
    rates["whole"] = rate if head is None else head
    scale = optax.inject_hyperparams(optax.scale_by_learning_rate)
    scales = {label: scale(learning_rate=one) for label, one in rates.items()}

    def decay(rate: Any) -> optax.GradientTransformation:
        return optax.add_decayed_weights(rate, decay_mask)

    # A norm is below infinity, or is not finite itself: no clipping.
    clipped = _clipped(config.clip_norm or math.inf)
    adam = _ADAMS[config.name](config.beta1, config.beta2, config.eps)
    steps = [clipped, precondition_b() if config.precondition_b else optax.identity(), adam]
    if config.factors != "adam":
        steps = [on_product(optax.chain(clipped, _OF_FACTORS[config.factors](config, adam)))]
    tx = optax.chain(
        *steps,
        _from_number(config.weight_decay, decay),
        _scheduled(config, total_steps),
        optax.partition(scales, trainable_labels),
    )
    # Moments in 32 bits are as large as the updates beside them, and a loop gains a hundredth there.
    # What preconditions reads all of what is fixed.
    if config.name == "adamw8bit" and not config.precondition_b:
        tx = by_layers(tx)

    if config.adalora.target_rank is not None:
        tx = adalora(tx, config.adalora, total_steps)
    return in_host_memory(tx) if config.offload and can_offload() else tx


def shapes_waiting(config: OptimConfig, state: Any) -> Any:
    """Shapes of the state of `make_optimizer`, in the memory where it waits between steps."""
    return shapes_in_host_memory(state) if config.offload and can_offload() else state


_ADAMS = {"adamw": optax.scale_by_adam, "adamw8bit": scale_by_adam8bit}

# Of a config and its Adam what takes unmagnified gradients.
_OF_FACTORS: dict[str, Callable[[OptimConfig, Any], optax.GradientTransformation]] = {
    "riemannian": lambda config, adam: adam,
    "lora_rite": lambda config, adam: beside(
        scale_by_rite(config.beta1, config.beta2, config.eps), adam
    ),
    "lora_muon": lambda config, adam: beside(scale_by_lora_muon(config.beta1), adam),
}


class Number(NamedTuple):
    """A number of the optimiser that is data."""

    value: Array


def _from_number(
    value: float, make: Callable[[Any], optax.GradientTransformation]
) -> optax.GradientTransformation:
    """The transformation `make(number)`, whose number stands in the state.

    optax.inject_hyperparams does the same with a count of steps and a state of its own for each
    number; those would be arrays that checkpoints written so far do not have.
    """

    def update(updates: Any, state: Number, params: Any = None) -> tuple[Any, Number]:
        tx = make(state.value)
        return tx.update(updates, tx.init(params), params)[0], state

    return optax.GradientTransformation(lambda params: Number(jnp.float32(value)), update)


def _clipped(most: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, whose number stands in the state, by the `norm` that the step has
    computed: a second one would keep what the gradients are made of in memory.
    """

    def update(
        updates: Any, state: Number, params: Any = None, *, norm: Array | None = None, **extra: Any
    ) -> tuple[Any, Number]:
        norm = optax.tree.norm(updates) if norm is None else norm
        is_small = jnp.squeeze(norm < state.value)

        def clip(g: Array) -> Array:
            return jax.lax.select(is_small, g, (g / norm.astype(g.dtype)) * state.value)

        return jax.tree.map(clip, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: Number(jnp.float32(most)), update)


class Schedule(NamedTuple):
    """Where a learning rate's schedule is, as data: steps taken, steps of the warm-up and in all,
    and which curve follows the warm-up.
    """

    count: Int[Array, ""]
    warmup: Int[Array, ""]
    total: Int[Array, ""]
    curve: Int[Array, ""]

    @classmethod
    def of(cls, config: OptimConfig, total_steps: int) -> Schedule:
        """The schedule of a run before its first step."""
        warmup = math.ceil(config.warmup_fraction * total_steps)
        curve = ("linear", "cosine", "constant").index(config.schedule)
        return cls(*(jnp.int32(number) for number in (0, warmup, total_steps, curve)))

    def factor(self) -> Float[Array, ""]:
        """What multiplies the learning rate at this step: it rises linearly to 1 over the warm-up,
        then falls to 0 (linear, cosine) or stays.

        The first step already moves: at step 0 of w warm-up steps the factor is 1 / w.
        """
        step, warmup = self.count.astype(jnp.float32), self.warmup.astype(jnp.float32)
        fallen = jnp.clip((step - warmup) / jnp.maximum(self.total - self.warmup, 1), 0.0, 1.0)
        curves = jnp.stack([1 - fallen, (1 + jnp.cos(jnp.pi * fallen)) / 2, jnp.ones_like(fallen)])
        rising = (step + 1) / jnp.maximum(warmup, 1)
        return jnp.where(self.count < self.warmup, rising, curves[self.curve])


def _scheduled(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Scaling by the schedule's factor at each step."""

    def update(updates: Any, state: Schedule, params: Any = None) -> tuple[Any, Schedule]:
        factor = state.factor()
        scaled = jax.tree.map(lambda u: u * factor.astype(u.dtype), updates)
        return scaled, state._replace(count=state.count + 1)

    # Made anew by each `init`: the step donates its state.
    return optax.GradientTransformation(lambda params: Schedule.of(config, total_steps), update)
