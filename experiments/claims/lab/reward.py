"""Training by policy gradient: a classifier draws its answer and learns from a reward alone."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_jax.adapters.apply import apply
from lora_jax.core.paths import key_for
from lora_jax.tasks.encoder import EncoderTask
from lora_jax.tasks.losses import Losses


@dataclass(frozen=True)
class RewardLosses:
    """REINFORCE (Williams 1992) with the batch's mean reward as the baseline; see `PerExample`.

    With a key, in training, a class is drawn for each text; it is worth 1 where it is the label,
    else 0. Without one, the loss is 1 minus the expected reward, the right class' probability.
    """

    model: nn.Module

    def __call__(self, frozen: Any, trainable: Any, batch: Any, key: Any = None) -> Losses:
        """The losses of a batch."""
        inputs = (batch[name] for name in ("tokens", "mask", "types"))
        logits = apply(self.model, frozen, trainable, *inputs, key=key).astype(jnp.float32)
        logs, labels = jax.nn.log_softmax(logits), jnp.maximum(batch["labels"], 0)
        log_of = lambda classes: jnp.take_along_axis(logs, classes[:, None], 1)[:, 0]
        weight, likeliest = batch["weight"], logits.argmax(-1)
        if key is None:
            return Losses.of(1 - jnp.exp(log_of(labels)), likeliest == labels, weight, likeliest)

        drawn = jax.random.categorical(key_for(key, "drawn"), logits)
        reward = (drawn == labels).astype(jnp.float32)
        baseline = (reward * weight).sum() / jnp.maximum(weight.sum(), 1)
        return Losses.of(-(reward - baseline) * log_of(drawn), drawn == labels, weight, drawn)


class RewardedTask(EncoderTask):
    """The task of a sentence classifier, trained by `RewardLosses`."""

    @classmethod
    def of(cls, task: EncoderTask) -> RewardedTask:
        """The same model and data."""
        made = cls(**{each.name: getattr(task, each.name) for each in fields(task)})
        made.__dict__["base"] = task.base  # a fingerprint of all weights: not made twice
        return made

    @property
    def per_example(self) -> RewardLosses:
        """See `Task`."""
        return RewardLosses(self.model)
