"""A run's steps on a mesh: rows of its batches and its state divided among the devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_jax.config import MeshConfig, read_by_path
from lora_jax.core import hosts
from lora_jax.core.fingerprint import fingerprint
from lora_jax.core.host import Place
from lora_jax.core.mesh import BATCH, batch_held, laid, make_mesh
from lora_jax.core.notice import say_once
from lora_jax.core.paths import flatten
from lora_jax.core.sharding import Rules, shard, shardings


def mesh_of(config: MeshConfig) -> Mesh | None:
    """The mesh of a run; None for one device.

    Raises:
        ValueError: it has more devices than there are, or not those of all processes.
    """
    if hosts.count() > 1 and config.devices != jax.device_count():
        raise ValueError(
            f"A run of {hosts.count()} processes needs a mesh of all their {jax.device_count()} "
            f"devices, and config.mesh has {config.devices}: set config.mesh.fsdp, data or model."
        )
    if config.devices == 1:
        return None
    return make_mesh(data=config.data, fsdp=config.fsdp, model=config.model)


def rules_of(config: MeshConfig) -> Rules | None:
    """The run's own rules on paths; None for those of this library's models."""
    axes = lambda end: None if end == "-" else tuple(end.split("+"))
    written = read_by_path(config.rules)
    return [(path, tuple(map(axes, ends.split()))) for path, ends in written] or None


def on_mesh(config: MeshConfig, *trees: Any) -> tuple[Any, ...]:
    """Frozen weights and states on the run's mesh.

    Raises:
        ValueError: there are fewer devices, or a rule matches no weight.
    """
    mesh = mesh_of(config)
    return trees if mesh is None else tuple(shard(tree, mesh, rules_of(config)) for tree in trees)


def check_same_start(trainable: Mapping[str, Any]) -> None:
    """Raises ValueError, in all processes, if what they train starts with other values: each has
    made them itself, and decompositions differ between machines of unlike kinds.
    """
    if hosts.count() == 1:
        return
    own = jax.tree.map(lambda x: None if hosts.spans(x) else x, dict(trainable))
    if len(set(hosts.meet("start", fingerprint(own)))) > 1:
        raise ValueError(
            "The processes of a run have made other first values of what is trained: their "
            "machines compute differently. Take machines of one kind, a start that is drawn "
            "(config.lora.init kaiming or gaussian), or that of an adapter (config.lora.init_from)."
        )


def train_step_on(
    mesh: Mesh, step: Callable[..., Any], *, rules: Rules | None = None, accumulate: int = 1
) -> Callable[..., Any]:
    """The training step, whose state lies afterwards as it lay before."""

    def placed(state: Any, frozen: Any, batch: Any) -> Any:
        batch, _ = _divided(batch, mesh, fill=accumulate == 1)
        state, metrics = step(state, frozen, batch)
        return state, _read_by_all(metrics, mesh)

    return state_held_on(mesh, placed, rules=rules)


def state_held_on(
    mesh: Mesh, step: Callable[..., Any], *, rules: Rules | None = None
) -> Callable[..., Any]:
    """A step, of one run or of several side by side, whose state lies afterwards as it lay before:
    axes are counted from the right, and slots are whole on every device.
    """

    def held(*args: Any) -> Any:
        state, metrics = step(*args)
        laid = jax.lax.with_sharding_constraint(state, shardings(state, mesh, rules))
        return laid, metrics

    return held


def eval_step_on(mesh: Mesh, step: Callable[..., Any]) -> Callable[..., Any]:
    """The evaluation step, which gives sums and what it found in each row."""

    def placed(frozen: Any, trainable: Any, batch: Any) -> Any:
        batch, rows = _divided(batch, mesh)
        sums, found = step(frozen, trainable, batch)
        return _read_by_all((sums, jax.tree.map(lambda x: x[:rows], found)), mesh)

    return placed


def own_rows(batch: Any, mesh: Mesh | None) -> Any:
    """A batch of host arrays for a step on the mesh: of several processes, each puts the rows of its
    own devices on them. Rows that do not divide go to all, and the step fills them up.
    """
    if mesh is None or not mesh.is_multi_process:
        return batch
    rows = batch["weight"].shape[0]

    def placed(x: Any) -> Any:
        x = np.asarray(x)
        axes = (BATCH, *[None] * (x.ndim - 1)) if x.ndim and x.shape[0] == rows else ()
        return hosts.spread(x, laid(x.shape, mesh, *axes))

    return jax.tree.map(placed, dict(batch))


def _read_by_all(found: Any, mesh: Mesh) -> Any:
    """What every process reads lies whole on its devices."""
    if not mesh.is_multi_process:
        return found
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, whole), found)


def _divided(batch: Any, mesh: Mesh, *, fill: bool = True) -> tuple[Any, int]:
    """The batch with its rows divided among the devices, and how many they were. Rows are filled up
    by copies of weight 0: behind the others, where they change no mask of dropout.
    """
    rows = batch["weight"].shape[0]
    count = math.prod(mesh.shape[axis] for axis in BATCH)
    if rows % count and not fill:
        say_once(
            f"a batch of {rows} rows is not divided by data x fsdp = {count}, and every device "
            "has all of them: set config.train.accumulate to 1, or config.train.batch_size to a "
            "multiple of both."
        )
    more = -rows % count if fill else 0

    def filled(name: str, x: Any) -> Any:
        if not more or not x.ndim or x.shape[0] != rows:
            return x
        copies = jnp.repeat(x[:1], more, axis=0)
        is_weight = name in ("weight", "loss_weight")
        return jnp.concatenate([x, jnp.zeros_like(copies) if is_weight else copies])

    return batch_held({name: filled(name, x) for name, x in batch.items()}, mesh), rows


def place_on(config: MeshConfig, shapes: Callable[[], tuple[Any, Any]]) -> Place | None:
    """Where each weight of a base is read to on the run's mesh; None for one device.

    Args:
        shapes: gives the frozen weights and what is trained, as jax.ShapeDtypeStructs.
    """
    mesh = mesh_of(config)
    if mesh is None:
        return None
    frozen, trained = (shardings(tree, mesh, rules_of(config)) for tree in shapes())
    whole = {path: leaf.value for path, leaf in trained.items() if leaf.replaces}
    laid = whole | flatten(frozen)
    return lambda path, like: laid.get(path)
