"""What a sweep will do and what it will need, before it does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from rich.table import Table

from lora_jax.config import Config
from lora_jax.sweep.grid import expand, run_id
from lora_jax.sweep.runner import describe_run, groups
from lora_jax.sweep.store import RunStore


@dataclass(frozen=True)
class PlannedGroup:
    """Runs that share compiled programs. Bytes are predicted: `base_bytes` from shapes, `peak_bytes` by the compiler's own account
    of the largest training step (None where the backend does not say)."""

    runs: tuple[str, ...]
    titles: tuple[str, ...]
    done: tuple[bool, ...]
    base_bytes: int
    trained_bytes: int
    peak_bytes: int | None
    shapes: tuple[int, ...]


def plan(config: Config) -> list[PlannedGroup]:
    """The groups of a sweep with their predicted memory. Compiles one step a group and trains nothing."""
    store = RunStore(config.out)
    return [_planned(wide or members[0], members, store) for wide, members in groups(expand(config))]


def _planned(widest: Config, members: Sequence[Config], store: RunStore) -> PlannedGroup:
    from lora_jax.data import Batches
    from lora_jax.train.loop import initial_state, programs_for, steps_of, without_rates
    from lora_jax.train.task import task_of

    task = task_of(widest)
    steps = steps_of(widest, task)
    frozen, state = jax.eval_shape(lambda: initial_state(widest, task, steps))
    batches = Batches(task.splits["train"], task.buckets, widest.train.batch_size, seed=widest.train.seed)
    shape = (widest.train.batch_size, max(batches.shapes))
    batch = {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
        "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
        "types": jax.ShapeDtypeStruct(shape, jnp.int32),
        "labels": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
        "weight": jax.ShapeDtypeStruct(shape[:1], jnp.float32),
    }
    program = programs_for(task.model, without_rates(widest.optim), steps, widest.train.accumulate).train
    return PlannedGroup(
        runs=tuple(run_id(run) for run in members),
        titles=tuple(describe_run(run) for run in members),
        done=tuple(store.status(run_id(run)) == "done" for run in members),
        base_bytes=_bytes(frozen),
        trained_bytes=_bytes(state),
        peak_bytes=program.peak_bytes(state, frozen, batch),
        shapes=batches.shapes,
    )


def _bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def plan_table(planned: Sequence[PlannedGroup]) -> Table:
    """A rich table with a row for each run, the groups that share compiled programs ruled apart."""
    table = Table(title=f"{sum(len(group.runs) for group in planned)} runs in {len(planned)} groups; a group shares its compiled programs")
    for heading in ("group", "run", "id", "done", "frozen base, MB", "trained, MB", "peak of a step, MB", "padded lengths"):
        table.add_column(heading, justify="right" if "MB" in heading else "left")
    for number, group in enumerate(planned, start=1):
        for title, name, done in zip(group.titles, group.runs, group.done, strict=True):
            first = name == group.runs[0]
            table.add_row(
                str(number) if first else "", title, name, "yes" if done else "",
                *([_megabytes(size) for size in (group.base_bytes, group.trained_bytes, group.peak_bytes)] if first else [""] * 3),
                ", ".join(map(str, group.shapes)) if first else "", end_section=name == group.runs[-1],
            )  # fmt: skip
    return table


def _megabytes(size: int | None) -> str:
    return "n/a" if size is None else f"{size / 1e6:,.1f}"
