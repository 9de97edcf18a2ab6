"""What a training program will need, from shapes and the compiler's own account; nothing is
trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from lora_jax.config import Config
from lora_jax.tasks.opening import LastTask


@dataclass(frozen=True)
class Predicted:
    """Bytes and work of a group's largest training step.

    peak_bytes: by compiled memory analysis, None where the backend does not say; of all slots
    together. flops: of one adapter's step on the longest batch, None where the compiler does not
    say. mean_length: of padded rows, over that of the longest.
    """

    base_bytes: int
    trained_bytes: int
    peak_bytes: int | None
    shapes: tuple[int, ...]
    flops: float | None
    mean_length: float
    steps: int


def predicted(tasks: LastTask, wide: Config, slots: int) -> Predicted:
    """What `slots` runs in the shapes of `wide` need. Compiles one training step; the same program
    then trains.
    """
    from lora_jax.training.optim import make_optimizer
    from lora_jax.training.programs import one_batch_a_shape, programs_for
    from lora_jax.training.run import steps_of
    from lora_jax.training.step import create_state

    task = tasks.of(wide)
    steps = steps_of(wide, task)
    frozen, trainable = task.shapes(wide)
    tx = make_optimizer(wide.optim, steps)
    state = jax.eval_shape(
        lambda trainable: create_state(trainable, tx, jax.random.key(0)), trainable
    )
    batches = task.batches(
        "train", wide.train.batch_size, seed=wide.train.seed, accumulate=wide.train.accumulate
    )
    shapes = {
        batch["tokens"].shape[1]: _abstract(dict(batch)) for batch in one_batch_a_shape(batches)
    }
    longest = shapes[max(shapes)]
    program = programs_for(task.per_example, wide, steps, slots).train
    args: tuple[Any, ...] = (state, frozen, longest)
    if slots > 1:
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((slots, *x.shape), x.dtype), state)
        args = (state, frozen, longest, {})
    lengths = [planned.length for planned in batches.plan(0)]
    cost = program.compile(*args).cost_analysis() or {}
    flops = cost.get("flops")
    return Predicted(
        base_bytes=_bytes(frozen),
        trained_bytes=_bytes(state),
        peak_bytes=program.peak_bytes(*args),
        shapes=tuple(sorted(shapes)),
        flops=float(flops) if flops and flops > 0 else None,
        mean_length=sum(lengths) / len(lengths) / max(lengths),
        steps=steps,
    )


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
