"""What a training step of a config holds on a device and computes, from the sizes of its model alone: no
weights, no data, nothing compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp

from lora_jax.analysis.devices import A100, Device
from lora_jax.config import Config, MeshConfig
from lora_jax.core.mesh import bytes_on_device
from lora_jax.core.paths import flatten
from lora_jax.core.quantize import QuantizedArray
from lora_jax.core.trainable import combine, partition
from lora_jax.kernels.vocab_loss import CHUNK
from lora_jax.models.kinds import ModelConfig
from lora_jax.tasks.encoder import EncoderTask
from lora_jax.tasks.shapes import batch_shapes, shapes_task
from lora_jax.tasks.task import Task
from lora_jax.training.offload import MIN_SIZE
from lora_jax.training.run import abstract_state


@dataclass(frozen=True)
class Footprint:
    """Bytes by what they are for on each device, and the floating-point operations of a step on all.

    codes, scales: of a quantised base. embeddings, head: of words, and of the output (of a
    classifier what is trained of it stands under `factors`). other: frozen weights besides. factors:
    all that is trained. optimiser: its moments; away: those that wait in the host's memory, of which
    `optimiser` has those of two arrays, one that comes and one that goes. gradients: of what is
    trained, twice where those of parts are added up. activations: what the forward pass keeps for the backward pass of a
    micro-batch, one block that is computed again, and words in the dtype of products. scores: of
    those, attention's of one block, which flash attention does not hold. dense: the largest weight
    of a layer in the dtype of products.
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
    scores: int = 0
    dense: int = 0
    away: int = 0
    flops: float = 0.0

    @property
    def arguments(self) -> int:
        """What is there before the step and after it."""
        names = ("codes", "scales", "embeddings", "head", "other", "factors", "optimiser")
        return sum(getattr(self, name) for name in names)

    @property
    def total(self) -> int:
        """All bytes of the device's own memory."""
        apart = ("away", "flops")
        return sum(getattr(self, one.name) for one in fields(self) if one.name not in apart)


# Share of a device's rate which a step reaches. QLoRA's 65B run (1,875 steps of 16 texts of 513
# tokens at most, 24 hours on a 48 GB card of 155e12) reached 0.45 at most: an assumption, not a
# measurement.
UTILISATION = 0.4
# Tokens a micro-batch below which a device waits for its launches, and the estimate is too low.
SMALL = 4096


def footprint_of(config: Config, model: ModelConfig, *, tokens: int | None = None) -> Footprint:
    """What a training step of a run holds at its peak, and how much it computes.

    Weights are in `model.base_dtype` but for those that are quantised, as tasks load them.
    Activations are those of a micro-batch of the longest texts, from the trace alone: what a
    compiler fuses away is counted, what it copies is not. Against the account of XLA's CPU backend:
    arguments equal, and besides them RoBERTa-base (16 x 128, 8 x 256 tokens) 1.01 and 0.97 times,
    GPT-2 medium of 8 layers (4 x 256) 1.6 times, LLaMA-7B of 4 layers in nf4 (1 x 512, recomputed)
    0.9 times. On a mesh, what is stored is a device's part to the byte; activations are those of its
    rows, as if `model` cut none of them.

    Args:
        model: the sizes of its model, as `lora_jax.models.sizes.SIZES` or a config.json has them.
        tokens: mean of an example, for the operations; by default all of `data.max_length`.
    """
    return footprint_of_task(config, shapes_task(config, model), tokens=tokens)


def footprint_of_task(config: Config, task: Task, *, tokens: int | None = None) -> Footprint:
    """`footprint_of` for a task with shapes in place of weights (`shapes_task`)."""
    one_step = bounded(config)
    frozen, state = abstract_state(one_step, task)
    trained, _ = partition(state.trainable)
    return Footprint(
        **_frozen_bytes(task, frozen),
        **_passing(one_step, task),
        **_moments(one_step, state.opt_state),
        factors=bytes_on_device(state.trainable),
        gradients=bytes_on_device(trained) * (1 + (config.train.accumulate > 1)),
        flops=_flops(one_step, task, tokens or config.data.max_length),
    )


def bounded(config: Config) -> Config:
    """The config with a number of steps, which without data does not follow from its epochs."""
    train = config.train
    return replace(config, train=replace(train, total_steps=train.total_steps or 1))


def seconds(found: Footprint, config: Config, steps: int, device: Device = A100) -> float:
    """An estimate of the time of so many steps, evaluation and compilation apart."""
    return found.flops * steps / (UTILISATION * device.rate[config.model.compute_dtype])


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


def _moments(config: Config, opt_state: Any) -> dict[str, int]:
    """Bytes of the optimiser's state on the device, and in the host's memory."""
    every, size_of = bytes_on_device(opt_state), bytes_on_device
    if not config.optim.offload:
        return {"optimiser": every, "away": 0}
    moved = sorted(size_of(x) for x in jax.tree.leaves(opt_state) if x.size >= MIN_SIZE)
    # Two moments an array.
    return {"optimiser": every - sum(moved[:-4]), "away": sum(moved)}


def _frozen_bytes(task: Task, frozen: Mapping[str, Any]) -> dict[str, int]:
    found = dict.fromkeys(("codes", "scales", "embeddings", "head", "other"), 0)
    output = getattr(task.model, "output_head", None)
    for path, leaf in flatten(frozen).items():
        if isinstance(leaf, QuantizedArray):
            found["codes"] += bytes_on_device(leaf.codes)
            found["scales"] += bytes_on_device((leaf.scale, leaf.zero, leaf.in_scale))
            continue
        is_embedding = path.rpartition("/")[2] == "embedding"
        is_head = output is not None and path.startswith(f"{output.module}/")
        # Tied words are there once.
        kind = "embeddings" if is_embedding else "head" if is_head else "other"
        found[kind] += bytes_on_device(leaf)
    return found


def _passing(config: Config, task: Task) -> dict[str, int]:
    """Activations of a device's rows of a micro-batch, scores of attention, and the largest dense
    weight.
    """
    mesh = config.mesh
    rows = -(-config.train.batch_size // (config.train.accumulate * mesh.data * mesh.fsdp))
    batch = batch_shapes(config, task, rows)
    frozen, state = abstract_state(replace(config, mesh=MeshConfig()), task)
    trained, fixed = partition(state.trainable)

    def kept(task: Task) -> int:
        def loss(trained: Any, fixed: Any, frozen: Any, batch: Any) -> Any:
            key = jax.random.key(0)
            return task.per_example(frozen, combine(trained, fixed), batch, key).total

        found = saved_arrays(loss, trained, fixed, frozen, batch)
        return bytes_on_device([one for one in found if hasattr(one, "dtype")])

    size = kept(task)
    settings = task.model.config
    if config.model.remat:  # One block at a time is kept whole while its gradient is formed.
        plain = replace(task, model=task.model.clone(remat=False))
        size += kept(plain) // settings.num_layers
    item, scores = jnp.dtype(config.model.compute_dtype).itemsize, 0
    if not isinstance(task, EncoderTask):
        # What a block computes again, besides what it named as kept: attention's scores and weights
        # in float32, and what the MLP's product is made of.
        rows, time = batch["tokens"].shape
        within = 3 * settings.intermediate_size + 4 * settings.hidden_size
        scores = 2 * 4 * rows * settings.num_heads * time * time
        size += item * rows * time * within + 2 * 4 * CHUNK * settings.vocab_size  # logits
    if item < 4:
        words = 1 if getattr(settings, "tied", True) else 2
        size += item * words * settings.vocab_size * settings.hidden_size
    # A quantised weight, or one that is laid out anew.
    weights = [site for path, site in task.sites.items() if site.is_matrix and "layers" in path]
    dense = max(math.prod(site.shape) for site in weights) // mesh.model
    return {"activations": size, "scores": scores, "dense": item * dense}


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
