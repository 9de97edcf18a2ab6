"""What a training step needs by the compiler's own account, from shapes alone: the one way in which
plans, dry runs and memory budgets predict it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from lora_jax.config import Config
from lora_jax.tasks.task import Task
from lora_jax.training.collectives import Collective, collectives_of
from lora_jax.training.compile import Memory
from lora_jax.training.mesh import on_mesh
from lora_jax.training.programs import programs_for
from lora_jax.training.run import abstract_state, steps_of
from lora_jax.training.slots import there


@dataclass(frozen=True)
class Needs:
    """Of a compiled training step; None where the backend does not say.

    frozen, state: shapes of its arguments, on a mesh with their shardings; of slots side by side,
    the state of all. memory: of each device. flops: of one adapter's step, on each device.
    collectives: what the devices of a mesh receive of each other.
    """

    frozen: Any
    state: Any
    memory: Memory | None
    flops: float | None
    collectives: tuple[Collective, ...] = ()

    @property
    def peak_bytes(self) -> int | None:
        """Arguments, results that reuse none of them, and temporaries."""
        return None if self.memory is None else sum(self.memory)


def needs_of(config: Config, task: Task, batch: Any, *, slots: int = 1) -> Needs:
    """What a step of `slots` runs in the shapes of `config` needs. The program that is compiled for
    it is the one that trains, if the process goes on to.

    Args:
        task: opened, or with shapes in place of its weights.
        batch: arrays or shapes.
    """
    program = programs_for(task.per_example, config, steps_of(config, task), slots).train
    frozen, state = abstract_state(config, task)
    args: tuple[Any, ...] = (state, frozen, batch)
    if slots > 1:
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((slots, *x.shape), x.dtype), state)
        (state,) = on_mesh(config.mesh, state)
        args = (state, frozen, batch, {}, *there(slots, range(slots)))
    compiled = program.compile(*args)
    flops = (compiled.cost_analysis() or {}).get("flops")
    return Needs(
        frozen,
        state,
        program.memory(*args),
        float(flops) if flops and flops > 0 else None,
        collectives_of(compiled) if config.mesh.devices > 1 else (),
    )
