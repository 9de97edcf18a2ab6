"""What a sweep will do and what it will need, before it does it."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from rich.table import Table

from lora_jax.config import Config
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.memory import Predicted, predicted
from lora_jax.sweeps.runner import describe_run
from lora_jax.sweeps.side_by_side import Pack, packs
from lora_jax.sweeps.store import RunStore, read_run
from lora_jax.tasks.opening import LastTask

# Share of a large matrix product's rate that training steps reach; only a first estimate, until a
# run of the group is finished.
_EFFICIENCY = 0.7


@dataclass(frozen=True)
class PlannedGroup:
    """Runs that share compiled programs, `slots` of them side by side. Bytes are predicted:
    `base_bytes` from shapes, `peak_bytes` by the compiler's own account of the largest training
    step (None where the backend does not say).

    seconds: of the runs that are not done, without compilation and evaluation; from finished runs
    of the group if there are some, else from the step's work and this device's speed; None where
    the compiler does not count work. why: the settings that keep these runs from being trained
    beside those of the group before.
    """

    runs: tuple[str, ...]
    titles: tuple[str, ...]
    done: tuple[bool, ...]
    base_bytes: int
    trained_bytes: int
    peak_bytes: int | None
    shapes: tuple[int, ...]
    slots: int
    seconds: float | None
    why: tuple[str, ...]


def plan(config: Config) -> list[PlannedGroup]:
    """The groups of a sweep with their predicted memory and time. Compiles one step a group and
    trains nothing.
    """
    store = RunStore(config.out)
    tasks = LastTask()
    found = packs(expand(config), config.sweep, predict=functools.partial(predicted, tasks))
    return [_planned(pack, store, tasks) for pack in found]


def _planned(pack: Pack, store: RunStore, tasks: LastTask) -> PlannedGroup:
    needs = predicted(tasks, pack.wide or pack.runs[0], pack.slots)
    names = tuple(run_id(run) for run in pack.runs)
    done = tuple(store.status(name) == "done" for name in names)
    return PlannedGroup(
        runs=names,
        titles=tuple(describe_run(run) for run in pack.runs),
        done=done,
        base_bytes=needs.base_bytes,
        trained_bytes=needs.trained_bytes,
        peak_bytes=needs.peak_bytes,
        shapes=needs.shapes,
        slots=pack.slots,
        seconds=_seconds(needs, names, done, store),
        why=pack.why,
    )


def _seconds(
    needs: Predicted, names: Sequence[str], done: Sequence[bool], store: RunStore
) -> float | None:
    left = len(done) - sum(done)
    finished = itertools.compress(names, done)
    measured = [read_run(store.folder(name)).result for name in finished]
    known = [
        result.seconds - (result.compile_seconds or 0.0)
        for result in measured
        if result and result.seconds is not None
    ]
    if known:
        return left * statistics.fmean(known)
    if needs.flops is None:
        return None
    return left * needs.steps * needs.flops * needs.mean_length / (_EFFICIENCY * _rate())


def _rate() -> float:
    """Floating-point operations a second of a large matrix product here."""
    x = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    start = time.perf_counter()
    for _ in range(4):
        product(x).block_until_ready()
    return 4 * 2 * 1024**3 / (time.perf_counter() - start)


def plan_table(planned: Sequence[PlannedGroup]) -> Table:
    """A rich table with a row for each run, the groups that share compiled programs ruled apart."""
    total = sum(len(group.runs) for group in planned)
    left = [group.seconds for group in planned]
    time_left = (
        ""
        if None in left
        else f"; training takes about {_duration(sum(left))}, compilation and evaluation apart"
    )
    table = Table(
        title=f"{total} runs in {len(planned)} groups; a group shares its compiled programs{time_left}",
        caption="\n".join(
            f"group {n} is apart from group {n - 1}: {'; '.join(group.why)}"
            for n, group in enumerate(planned, 1)
            if group.why
        ),
        caption_justify="left",
    )
    headings = (
        "group",
        "run",
        "id",
        "done",
        "side by side",
        "frozen base, MB",
        "trained, MB",
        "peak of a step, MB",
        "time",
        "padded lengths",
    )
    for heading in headings:
        table.add_column(
            heading, justify="right" if "MB" in heading or heading == "time" else "left"
        )
    for number, group in enumerate(planned, start=1):
        for title, name, done in zip(group.titles, group.runs, group.done, strict=True):
            first = name == group.runs[0]
            bytes_of = (group.base_bytes, group.trained_bytes, group.peak_bytes)
            shared = (
                str(group.slots),
                *map(_megabytes, bytes_of),
                _duration(group.seconds),
                ", ".join(map(str, group.shapes)),
            )
            cells = shared if first else [""] * len(shared)
            table.add_row(
                str(number) if first else "",
                title,
                name,
                "yes" if done else "",
                *cells,
                end_section=name == group.runs[-1],
            )
    return table


def _megabytes(size: int | None) -> str:
    return "n/a" if size is None else f"{size / 1e6:,.1f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "n/a"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
