"""A task of one's own: any Linen module, any loss, and arrays."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Int

from lora_jax.adapters.apply import apply
from lora_jax.adapters.sites import check_inputs, find_sites
from lora_jax.core.fingerprint import fingerprint
from lora_jax.core.lowrank import LoraSpec
from lora_jax.core.model_variable import give_variables, take_variables
from lora_jax.core.paths import Rules
from lora_jax.core.quantize import QuantSpec
from lora_jax.core.trainable import Trainables
from lora_jax.data.batches import EpochBatches
from lora_jax.data.buckets import PlannedBatch
from lora_jax.tasks.losses import Losses
from lora_jax.tasks.task import Task


class Running:
    """A module with its adapters, as a loss gets it: `model(...)` runs it.

    training: whether this is a step of training; dropout is on then, that of the module (its
    stream 'dropout') and of adapters.
    key: for what is random in the loss itself; in evaluation the same each time.
    variables: the module's own ones, by name, as the last call left them in training.
    """

    def __init__(self, model: Any, frozen: Any, trainable: Trainables, key: Any) -> None:
        self._model, self._frozen, self._trainable = model, frozen, dict(trainable)
        self._key, self.training = key, key is not None
        self.key = jax.random.fold_in(jax.random.key(0) if key is None else key, 1)
        self._calls = 0
        self._moving = list(take_variables(trainable)[1]) if self.training else []

    @property
    def variables(self) -> dict[str, jax.Array] | None:
        """By name in the trainable tree, what a step leaves of the module's own variables."""
        own = {name for name in self._trainable if name.partition(":")[0] in self._moving}
        return {name: self._trainable[name].value for name in own} or None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives; each call in a loss drops something else."""
        key, self._calls = self._key, self._calls + 1
        if self.training and self._calls > 1:
            key = jax.random.fold_in(key, self._calls + 1)
        if self.training and isinstance(self._model, nn.Module):
            kwargs = {"rngs": {"dropout": jax.random.fold_in(key, 2)}} | kwargs
        if self._moving:
            kwargs["mutable"] = self._moving
        y = apply(self._model, self._frozen, self._trainable, *args, key=key, **kwargs)
        if not self._moving:
            return y
        y, moved = y
        self._trainable |= jax.lax.stop_gradient(give_variables(moved))
        return y


@dataclass(frozen=True)
class CustomLosses:
    """The loss of any module, row by row: see `PerExample`.

    `loss(model, batch)` gives the loss of every row, (rows,), or a scalar, their mean; with it, in
    a tuple, it may say of every row whether it is right (1 or 0). `model` is a `Running`.
    """

    model: Any
    loss: Callable[..., jax.Array]
    of: Any = None  # Equal ones share their programs.

    def __call__(
        self, frozen: Any, trainable: Trainables, batch: Any, key: jax.Array | None = None
    ) -> Losses:
        """The losses of a batch.

        Raises:
            ValueError: the loss has another shape.
        """
        run = Running(self.model, frozen, trainable, key)
        weight = batch["weight"]
        found, right = self.loss(run, batch), None
        if isinstance(found, tuple):
            found, right = found
            right = jnp.broadcast_to(jnp.asarray(right, jnp.float32), weight.shape) * weight
        found = jnp.asarray(found, jnp.float32)
        if found.shape not in ((), weight.shape):
            raise ValueError(
                f"A task's loss needs to be a scalar or one number a row {weight.shape}, got "
                f"{found.shape}. Take the mean over the other axes."
            )
        # A mean over the batch is every row's: there are no filler rows among them.
        each = jnp.broadcast_to(found, weight.shape) * weight
        return Losses(each.sum(), each, right, weight, variables=run.variables)


class Arrays:
    """A split as arrays by name, whose first axis counts examples.

    Raises:
        ValueError: there is none, or they differ in their number of examples.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        sizes = {name: len(array) for name, array in self.arrays.items()}
        if len(set(sizes.values())) != 1 or 0 in sizes.values():
            raise ValueError(
                f"A split needs arrays with one and the same number of examples, got {sizes}."
            )
        self._count = next(iter(sizes.values()))

    def __len__(self) -> int:
        return self._count

    def rows(self, indices: Int[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """A batch of these examples; `weight` is 1 unless there is an array of that name."""
        batch = {name: array[indices] for name, array in self.arrays.items()}
        ones = np.ones(len(indices), np.float32)
        # Speed counts what the mask counts: examples, unless there are tokens.
        return {"weight": ones, "mask": ones[:, None] > 0} | batch

    def identity(self, index: int) -> bytes:
        """The bytes of an example: equal ones are equal examples."""
        return b"|".join(
            np.ascontiguousarray(self.arrays[name][index]).tobytes() for name in sorted(self.arrays)
        )

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of all arrays."""
        return fingerprint(self.arrays)


class ArrayBatches(EpochBatches):
    """The batches of a split; see `EpochBatches`.

    Shuffled epochs leave out what does not fill a batch, each epoch something else; in order, the
    last batch is shorter. No row is filler.

    Raises:
        ValueError: a shuffled epoch has no whole batch.
    """

    padding_fraction = 0.0

    def __init__(
        self, arrays: Arrays, batch_size: int, *, seed: int, shuffle: bool, epochs: int | None
    ) -> None:
        if shuffle and len(arrays) < batch_size:
            raise ValueError(
                f"A batch of {batch_size} examples needs as many, and there are {len(arrays)}. "
                "Lower config.train.batch_size."
            )
        super().__init__(arrays, batch_size, seed=seed, shuffle=shuffle, epochs=epochs)

    def _plan(self, epoch: int) -> list[PlannedBatch]:
        order, size = np.arange(len(self.encoded)), self.batch_size
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
            order = order[: len(order) // size * size]
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        return [PlannedBatch(len(part), part) for part in parts]

    def _make(self, planned: PlannedBatch) -> dict[str, np.ndarray]:
        return self.encoded.rows(planned.indices)

    def fingerprint(self) -> str:
        """See `EpochBatches.fingerprint`."""
        settings = (self.encoded.fingerprint, self.batch_size, self.seed, self.shuffle)
        return hashlib.sha256(repr(settings).encode()).hexdigest()


@dataclass(eq=False)
class CustomTask(Task):
    """Any Linen module with a loss of one's own; `custom_task` makes one. Methods are those of
    `Task`.
    """

    by_example: ClassVar[bool] = False  # its loss may be a mean over the batch
    loss: Callable[..., jax.Array] | None = None

    @property
    def per_example(self) -> CustomLosses:
        """See `Task`."""
        return CustomLosses(self.model, self.loss)

    def batched(self, batch_size: int) -> int:
        """See `Task`: what does not fill a batch is left out."""
        return max(self.epoch // batch_size, 1) * batch_size

    def _batches(
        self, encoded: Any, batch_size: int, rows: Mapping[str, Any], **order: Any
    ) -> ArrayBatches:
        return ArrayBatches(encoded, batch_size, **order)


def custom_task(
    model: Any,
    params: Mapping[str, Any],
    loss: Callable[..., jax.Array],
    splits: Mapping[str, Mapping[str, Any]],
    *,
    inputs: Sequence[Any],
    lora: Rules[LoraSpec] | None = None,
    quant: Rules[QuantSpec] | None = None,
    whole: Sequence[str] = (),
    note: str = "",
) -> CustomTask:
    """A task for any Linen module, which `lora_jax.train(config, folder, task=...)` takes.

    >>> def loss(model, batch):  # doctest: +SKIP
    ...     logits = model(batch["x"])
    ...     return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    >>> task = custom_task(module, params, loss, splits, inputs=(x,))  # doctest: +SKIP

    Args:
        params: the pretrained weights.
        loss: `(model, batch)` to the loss of every row, or to their mean; `model(...)` runs the
            module with its adapters (`Running`).
        splits: train, validation and test, each arrays by name whose first axis counts examples.
            `weight` (examples,) weighs them, if it is there.
        inputs: positional arguments of the module, arrays or jax.ShapeDtypeStruct, to find its
            weights with.
        lora, quant: rules on paths, instead of those of a run's config.
        whole: patterns of weights that are trained whole beside adapters, such as a new head.

    Raises:
        ValueError: a split is missing, or its arrays differ in their number of examples.
    """
    missing = [name for name in ("train", "validation", "test") if name not in splits]
    if missing:
        raise ValueError(
            f"A task needs the splits train, validation and test; {', '.join(missing)} is missing. "
            "Give some examples of another split, if there are none."
        )
    check_inputs(inputs)
    return CustomTask(
        model=model,
        params=params,
        sites=find_sites(model, *inputs),
        splits={name: Arrays(arrays) for name, arrays in splits.items()},
        note=note,
        fingerprint=functools.partial(fingerprint, params),
        loss=loss,
        lora=lora,
        quant=quant,
        whole=whole,
    )
