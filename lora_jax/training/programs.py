"""The compiled training and evaluation steps that runs of one structure share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from lora_jax.config import Config, MeshConfig, OptimConfig
from lora_jax.core import hosts
from lora_jax.core.platform import platform
from lora_jax.core.sharding import Rules, shardings
from lora_jax.tasks.losses import PerExample, Summed, Sums
from lora_jax.training.compile import Program, program_for
from lora_jax.training.mesh import (
    eval_step_on,
    mesh_of,
    own_rows,
    rules_of,
    state_held_on,
    train_step_on,
)
from lora_jax.training.optim import make_optimizer, structure_of
from lora_jax.training.step import (
    make_stacked_eval_step,
    make_stacked_step,
    make_train_step,
)


@dataclass(frozen=True)
class Programs:
    """A training step, and an evaluation step that gives a batch's `Sums` and `Losses.rows`. Of one
    run, or of `slots` side by side, whose state has an axis for them.
    """

    train: Program
    evaluate: Program
    slots: int
    mesh: Mesh | None = None
    rules: Rules | None = None

    def placed(self, batch: Any) -> Any:
        """A batch as the programs take it."""
        return own_rows(batch, self.mesh)

    def laid(self, state: Any) -> Any:
        """A state of all slots as the programs take it and leave it."""
        if self.mesh is None:
            return state
        return jax.device_put(state, shardings(state, self.mesh, self.rules))

    @property
    def compile_seconds(self) -> float:
        """What compiling both has taken so far."""
        return self.train.compile_seconds + self.evaluate.compile_seconds


def programs_for(per_example: PerExample, config: Config, steps: int, slots: int = 1) -> Programs:
    """The programs of a run of `steps` steps, or of so many side by side.

    Runs share them that agree in their loss, in the optimiser without what is data to it, in
    micro-batches, in their mesh, and in their number of steps where a rank budget is spread over
    them.

    Raises:
        ValueError: several side by side on the devices of several processes.
    """
    if slots > 1 and hosts.count() > 1:
        raise ValueError(
            f"Runs of several processes are trained one by one, and {slots} are to stand side by "
            f"side on {hosts.count()}. Set config.sweep.stack to 1."
        )
    budget = config.optim.adalora.target_rank is not None
    return _programs(
        per_example,
        structure_of(config.optim),
        steps if budget else 1,
        config.train.accumulate,
        slots,
        lanes_for(slots),
        config.mesh,
    )


def forget_programs() -> None:
    """Lets go of all programs that no run holds."""
    _programs.cache_clear()


@functools.lru_cache(maxsize=8)
def _programs(
    per_example: PerExample,
    optim: OptimConfig,
    steps: int,
    accumulate: int,
    slots: int,
    lanes: int,
    mesh: MeshConfig,
) -> Programs:
    loss = Summed(per_example)
    step = make_train_step(loss, make_optimizer(optim, steps), accumulate=accumulate)

    def score(frozen: Any, trainable: Any, batch: Any) -> tuple[Sums, dict[str, Any]]:
        losses = per_example(frozen, trainable, batch, None)
        return losses.sums(), losses.rows()

    devices, rules = mesh_of(mesh), rules_of(mesh)
    if devices is not None:
        step = train_step_on(devices, step, rules=rules, accumulate=accumulate)
        score = eval_step_on(devices, score)
    if slots > 1:
        step = make_stacked_step(step, slots, lanes)
        score = make_stacked_eval_step(score, slots, lanes)
        if devices is not None:
            step = state_held_on(devices, step, rules=rules)
    return Programs(program_for(step, donate=(0,)), program_for(score), slots, devices, rules)


def lanes_for(slots: int) -> int:
    """How many adapters go through the model at once: all on an accelerator, one on a CPU.

    At once, every product with the frozen base is one product of the flattened batch, and the base
    is dequantised once: what an accelerator needs to be busy. A CPU is busy with one adapter, whose
    activations stay in its caches: four at once took 1.4 times the processor time of four alone
    (MiniLM, rank 8, 32 x 24 tokens), 1.3 times with the thin products one by one. One after another
    inside the program they took 0.95 times: what is the same for all (the dequantised base,
    embeddings, the first layer's frozen products of a common batch) is still computed once.
    """
    return 1 if platform() == "cpu" else slots


def one_batch_a_shape(batches: Any) -> Iterator[Any]:
    """The first batch of each shape of an epoch: what a step will be compiled for."""
    seen = set()
    for index, planned in enumerate(batches.plan(0)):
        if planned.length not in seen:
            seen.add(planned.length)
            yield batches[index]
