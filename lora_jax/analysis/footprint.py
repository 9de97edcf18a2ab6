"""What a training step of a config holds and computes, from the sizes of its model alone: no weights,
no data, nothing compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp

from lora_jax.adapters.sites import find_sites
from lora_jax.config import Config
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray
from lora_jax.core.trainable import combine, partition
from lora_jax.kernels.vocab_loss import CHUNK
from lora_jax.models.encoder_parts import EncoderConfig
from lora_jax.models.kinds import ModelConfig, example_inputs, model_of
from lora_jax.models.t5 import T5Config
from lora_jax.tasks.building import build_options
from lora_jax.tasks.encoder import EncoderTask
from lora_jax.tasks.language import DecoderTask, Seq2SeqTask
from lora_jax.tasks.task import Task
from lora_jax.training.run import abstract_state


@dataclass(frozen=True)
class Footprint:
    """Bytes by what they are for, and the floating-point operations of a step.

    codes, scales: of a quantised base. embeddings, head: of words, and of the output (of a
    classifier what is trained of it stands under `factors`). other: frozen weights besides. factors:
    all that is trained. optimiser: its moments. gradients: of what is trained, twice where those of
    parts are added up. activations: what the forward pass keeps for the backward pass of a
    micro-batch, one block that is computed again, and weights in the dtype of products.
    """

    codes: int = 0
    scales: int = 0
    embeddings: int = 0
    head: int = 0
    other: int = 0
    factors: int = 0
    optimiser: int = 0
    gradients: int = 0
    activations: int = 0
    flops: float = 0.0

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(getattr(self, one.name) for one in fields(self) if one.name != "flops")


@dataclass(frozen=True)
class Device:
    """An accelerator: its memory in bytes, and operations a second of dense products by dtype."""

    name: str
    memory: int
    rate: Mapping[str, float]


# NVIDIA's data sheet; float32 products run as TF32 there, which is jax's default.
A100 = Device("A100 80 GB", 80 * 2**30, {"float32": 156e12, "bfloat16": 312e12})
# Share of that rate which a step reaches. QLoRA's 65B run (1,875 steps of 16 texts of 513 tokens at
# most, 24 hours on a 48 GB card of 155e12) reached 0.45 at most: an assumption, not a measurement.
UTILISATION = 0.4
# Tokens a micro-batch below which a device waits for its launches, and the estimate is too low.
SMALL = 4096


def footprint_of(config: Config, model: ModelConfig, *, tokens: int | None = None) -> Footprint:
    """What a training step of a run holds at its peak, and how much it computes.

    Weights are float32 but for those that are quantised, as tasks load them. Activations are those
    of a micro-batch of the longest texts, from the trace alone: what a compiler fuses away is
    counted, what it copies is not. Against the account of XLA's CPU backend: arguments equal, and
    besides them RoBERTa-base (16 x 128, 8 x 256 tokens) 1.01 and 0.97 times, GPT-2 medium of 8
    layers (4 x 256) 1.6 times, LLaMA-7B of 4 layers in nf4 (1 x 512, recomputed) 0.9 times.

    Args:
        model: the sizes of its model, as `lora_jax.models.sizes.SIZES` or a config.json has them.
        tokens: mean of an example, for the operations; by default all of `data.max_length`.
    """
    train = config.train
    one_step = replace(config, train=replace(train, total_steps=train.total_steps or 1))
    task = shapes_task(one_step, model)
    frozen, state = abstract_state(one_step, task)
    parts = _frozen_bytes(task, frozen)

    trained, _ = partition(state.trainable)
    return Footprint(
        **parts,
        factors=_bytes(state.trainable),
        optimiser=_bytes(state.opt_state),
        gradients=_bytes(trained) * (1 + (train.accumulate > 1)),
        activations=_activations(one_step, task, frozen, state.trainable),
        flops=_flops(one_step, task, tokens or config.data.max_length),
    )


def seconds(found: Footprint, config: Config, steps: int, device: Device = A100) -> float:
    """An estimate of the time of so many steps, evaluation and compilation apart."""
    return found.flops * steps / (UTILISATION * device.rate[config.model.compute_dtype])


def shapes_task(config: Config, model: ModelConfig, classes: int = 2) -> Task:
    """The task of a config for a model of these sizes, with shapes in place of weights and without
    data.
    """
    options: dict[str, Any] = build_options(config.model)
    if isinstance(model, EncoderConfig):
        rates = ("dropout", "attention_dropout", "head_dropout")
        own = {name: getattr(config.model, name) for name in rates}
        model = replace(model, num_classes=classes, **own)
    module, inputs = model_of(model, **options), example_inputs(model)
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    kind: type[Task] = DecoderTask
    if isinstance(model, EncoderConfig):
        kind = EncoderTask
    elif isinstance(model, T5Config):
        kind = Seq2SeqTask
    return kind(
        model=module,
        params=params,
        sites=find_sites(module, *inputs),
        splits={},
        fingerprint=lambda: "",
        label_smoothing=config.data.label_smoothing,
    )


def saved_arrays(function: Callable[..., Any], variable: Any, *fixed: Any) -> list[Any]:
    """Shapes and dtypes of what `function(variable, *fixed)` keeps for the gradient of `variable`,
    its own arguments excepted.

    The forward pass is traced with all arguments as inputs, and what its pullback closes over as
    outputs. An output that is an input (a frozen weight, a factor) costs no memory and does not
    count.
    """

    def forward(variable: Any, *fixed: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(lambda tree: function(tree, *fixed), variable)[1])

    jaxpr = jax.make_jaxpr(forward)(variable, *fixed).jaxpr
    given = {*jaxpr.invars, *jaxpr.constvars}
    return [
        var.aval
        for var in jaxpr.outvars
        if isinstance(var, jax.extend.core.Literal) or var not in given
    ]


def _bytes(tree: Any) -> int:
    """Of the arrays of a tree of shapes; random keys are a few bytes."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not _is_key(leaf)]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _frozen_bytes(task: Task, frozen: Mapping[str, Any]) -> dict[str, int]:
    found = dict.fromkeys(("codes", "scales", "embeddings", "head", "other"), 0)
    output = getattr(task.model, "output_head", None)
    for path, leaf in flatten(frozen).items():
        if isinstance(leaf, QuantizedArray):
            found["codes"] += _bytes(leaf.codes)
            found["scales"] += _bytes((leaf.scale, leaf.zero, leaf.in_scale))
            continue
        is_embedding = path.rpartition("/")[2] == "embedding"
        is_head = output is not None and path.startswith(f"{output.module}/")
        # Tied words are there once.
        kind = "embeddings" if is_embedding else "head" if is_head else "other"
        found[kind] += _bytes(leaf)
    return found


def _batch(config: Config, task: Task) -> dict[str, Any]:
    """Shapes of a micro-batch of the longest texts."""
    rows = config.train.batch_size // config.train.accumulate
    ids = jax.ShapeDtypeStruct((rows, config.data.max_length), jnp.int32)
    floats = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
    if isinstance(task, EncoderTask):
        of_rows = {
            "labels": jax.ShapeDtypeStruct((rows,), jnp.int32),
            "weight": jax.ShapeDtypeStruct((rows,), jnp.float32),
        }
        return {"tokens": ids, "mask": ids.update(dtype=jnp.bool_), "types": ids} | of_rows
    batch = {"tokens": ids, "segments": ids, "labels": ids, "loss_weight": floats}
    if not isinstance(task, Seq2SeqTask):
        return batch
    # Of the target, what an answer has at most, where the config says so.
    longest = config.data.decoding.max_new or config.data.max_length
    target = {name: ids.update(shape=(rows, longest)) for name in ("target", "target_segments")}
    ends = {name: batch[name].update(shape=(rows, longest)) for name in ("labels", "loss_weight")}
    return batch | target | ends


def _activations(config: Config, task: Task, frozen: Any, trainable: Any) -> int:
    batch = _batch(config, task)
    trained, fixed = partition(trainable)

    def kept(task: Task) -> int:
        def loss(trained: Any, fixed: Any, frozen: Any, batch: Any) -> Any:
            key = jax.random.key(0)
            return task.per_example(frozen, combine(trained, fixed), batch, key).total

        found = saved_arrays(loss, trained, fixed, frozen, batch)
        return _bytes([one for one in found if hasattr(one, "dtype")])

    size = kept(task)
    settings = task.model.config
    if config.model.remat:  # One block at a time is kept whole while its gradient is formed.
        plain = replace(task, model=task.model.clone(remat=False))
        size += kept(plain) // settings.num_layers
    item = jnp.dtype(config.model.compute_dtype).itemsize
    if not isinstance(task, EncoderTask):
        size += _recomputed(config, settings) + 2 * 4 * CHUNK * settings.vocab_size  # logits
    cast = [math.prod(site.shape) for site in task.sites.values() if site.is_matrix]
    if item == 4:
        return size + item * max(cast)  # a quantised weight, or one that is laid out anew
    words = 1 if getattr(settings, "tied", True) else 2
    return size + item * (max(cast) + words * settings.vocab_size * settings.hidden_size)


def _recomputed(config: Config, settings: Any) -> int:
    """What a block of a language model holds besides what it named as kept, which it always computes
    again: attention's scores and weights in float32, and what the MLP's product is made of.
    """
    rows, time = config.train.batch_size // config.train.accumulate, config.data.max_length
    item = jnp.dtype(config.model.compute_dtype).itemsize
    within = item * time * (3 * settings.intermediate_size + 4 * settings.hidden_size)
    return rows * (within + 2 * 4 * settings.num_heads * time * time)


def _flops(config: Config, task: Task, tokens: int) -> float:
    """Products of a step: 2 a weight and token forward, as many for the gradient of its input, and
    for that of the weight itself where it is trained; attention's; and the output's words.
    """
    settings, count = task.model.config, config.train.batch_size * tokens
    blocks = sum(
        math.prod(site.stack + site.shape)
        for path, site in task.sites.items()
        if site.is_matrix and "layers" in path
    )
    passes = 2 + (config.method == "full") + config.model.remat
    attention = 4 * settings.num_layers * tokens * settings.hidden_size
    words = 0 if isinstance(task, EncoderTask) else settings.vocab_size * settings.hidden_size
    return float(count * (passes * (2 * blocks + attention) + 2 * 2 * words))
