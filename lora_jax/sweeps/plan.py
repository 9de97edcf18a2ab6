"""What a sweep will do and what it will need, before it does it."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from rich.table import Table
from rich.text import Text

from lora_jax.config import Config
from lora_jax.core.escapes import in_terminal
from lora_jax.sweeps.grid import duration, expand, run_id
from lora_jax.sweeps.runner import describe_runs
from lora_jax.sweeps.side_by_side import Pack, Predicted, packs, predicted
from lora_jax.sweeps.store import RunStore, read_run
from lora_jax.tasks.opening import LastTask

# Share of a large matrix product's rate that training steps reach; only a first estimate, until a
# run of the group is finished.
_EFFICIENCY = 0.7


@dataclass(frozen=True)
class PlannedGroup:
    """A pack of runs that share compiled programs, and what they need.

    `done` says which of the runs are finished. seconds: of the others, without compilation and
    evaluation; from finished runs of the group if there are some, else from the step's work and
    this device's speed; None where the compiler does not count work.
    """

    pack: Pack
    needs: Predicted
    done: tuple[bool, ...]
    seconds: float | None


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
    records = [read_run(store.folder(run_id(run))) for run in pack.runs]
    done = tuple(record.status == "done" for record in records)
    left = len(done) - sum(done)
    known = [record.result.training_seconds for record in records if record.result is not None]
    seconds = None
    if measured := [one for one in known if one is not None]:
        seconds = left * statistics.fmean(measured)
    elif needs.flops is not None:
        work = needs.steps * needs.flops * needs.mean_length
        seconds = left * work / (_EFFICIENCY * _rate())
    return PlannedGroup(pack, needs, done, seconds)


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
    total = sum(len(group.done) for group in planned)
    left = [group.seconds for group in planned]
    time_left = (
        ""
        if None in left
        else f"; training takes about {duration(sum(left))}, compilation and evaluation apart"
    )
    table = Table(
        title=f"{total} runs in {len(planned)} groups; a group shares its compiled programs{time_left}",
        caption=Text("\n").join(
            in_terminal(f"group {n} is apart from group {n - 1}: {'; '.join(group.pack.why)}")
            for n, group in enumerate(planned, 1)
            if group.pack.why
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
    words = describe_runs([run for group in planned for run in group.pack.runs])
    for number, group in enumerate(planned, start=1):
        runs, needs = group.pack.runs, group.needs
        shared = (
            str(group.pack.slots),
            *map(_megabytes, (needs.base_bytes, needs.trained_bytes, needs.peak_bytes)),
            "n/a" if group.seconds is None else duration(group.seconds),
            ", ".join(map(str, needs.shapes)),
        )
        # What a group shares stands in the row of its first run.
        for run, done in zip(runs, group.done, strict=True):
            first = run is runs[0]
            table.add_row(
                str(number) if first else "",
                in_terminal(words[run_id(run)]),
                run_id(run),
                "yes" if done else "",
                *(shared if first else [""] * len(shared)),
                end_section=run is runs[-1],
            )
    return table


def _megabytes(size: int | None) -> str:
    return "n/a" if size is None else f"{size / 1e6:,.1f}"
