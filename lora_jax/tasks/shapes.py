"""The task of a config by the sizes of its model alone: shapes in place of weights and of batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.adapters.sites import find_sites
from lora_jax.config import Config
from lora_jax.core.host import StoredWeight
from lora_jax.core.paths import flatten, unflatten
from lora_jax.core.quantize import QuantizedArray
from lora_jax.models.encoder_parts import EncoderConfig
from lora_jax.models.kinds import ModelConfig, example_inputs, model_of
from lora_jax.models.t5 import T5Config
from lora_jax.tasks.building import build_options
from lora_jax.tasks.encoder import EncoderTask
from lora_jax.tasks.language import DecoderTask, Seq2SeqTask
from lora_jax.tasks.task import Task


def shapes_task(
    config: Config,
    model: ModelConfig,
    classes: int = 2,
    *,
    held: Mapping[str, QuantizedArray] = MappingProxyType({}),
) -> Task:
    """The task of a config for a model of these sizes, with shapes in place of weights and without
    data.

    Args:
        held: by path, the boxes of weights that its files hold quantised (`StoredModel.boxes`).

    Raises:
        ValueError: the config says another base than these.
    """
    options: dict[str, Any] = build_options(config.model)
    if isinstance(model, EncoderConfig):
        rates = ("dropout", "attention_dropout", "head_dropout")
        own = {name: getattr(config.model, name) for name in rates}
        model = replace(model, num_classes=classes, **own)
    module, inputs = model_of(model, **options), example_inputs(model)
    sites = find_sites(module, *inputs)
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    wide = jnp.dtype(config.model.base_dtype)
    dtype_of = lambda path, x: wide if len(sites[path].shape) > 1 else x.dtype
    flat = {path: x.update(dtype=dtype_of(path, x)) for path, x in flatten(params).items()}
    stored = {
        path: StoredWeight(flat[path].shape, box.dtype, _unread, like=box)
        for path, box in held.items()
    }
    kind: type[Task] = DecoderTask
    if isinstance(model, EncoderConfig):
        kind = EncoderTask
    elif isinstance(model, T5Config):
        kind = Seq2SeqTask
    task = kind(
        model=module,
        params=unflatten(flat | stored),
        sites=sites,
        splits={},
        fingerprint=lambda: "",
        label_smoothing=config.data.label_smoothing,
    )
    task.check_held(config)
    return task


def _unread(spec: Any, place: Any) -> Any:
    raise TypeError("A task of shapes has no weights to read.")


def batch_shapes(config: Config, task: Task, rows: int | None = None) -> dict[str, Any]:
    """Shapes of a batch of the longest texts, each in a row of its own; `rows` of it."""
    rows = rows or config.train.batch_size
    ids = jax.ShapeDtypeStruct((rows, config.data.max_length), jnp.int32)
    floats = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
    if isinstance(task, EncoderTask):
        of_rows = {
            "labels": jax.ShapeDtypeStruct((rows,), jnp.int32),
            "weight": jax.ShapeDtypeStruct((rows,), jnp.float32),
        }
        return {"tokens": ids, "mask": ids.update(dtype=jnp.bool_), "types": ids} | of_rows
    counted = {"weight": jax.ShapeDtypeStruct((rows,), jnp.float32)}
    batch = {"tokens": ids, "segments": ids, "labels": ids, "loss_weight": floats}
    if not isinstance(task, Seq2SeqTask):
        return batch | {"mask": ids.update(dtype=jnp.bool_)} | counted
    # Of the target, what an answer has at most, where the config says so.
    longest = config.data.decoding.max_new or config.data.max_length
    target = {name: ids.update(shape=(rows, longest)) for name in ("target", "target_segments")}
    ends = {name: batch[name].update(shape=(rows, longest)) for name in ("labels", "loss_weight")}
    both = jax.ShapeDtypeStruct((rows, config.data.max_length + longest), jnp.bool_)
    return batch | target | ends | {"mask": both} | counted
