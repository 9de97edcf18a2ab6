"""What a sweep will do and what it will need, before it does it."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """A pack of runs that share compiled programs, and what they need; None where nothing was
    compiled.

    `done` says which of the runs are finished. seconds: of the others, without compilation, first
    steps and evaluation; from finished runs of the group if there are some, else from the step's work and
    this device's speed; None where neither is known.
    """

    pack: Pack
    needs: Predicted | None
    done: tuple[bool, ...]
    seconds: float | None


def plan(config: Config, *, compiled: bool = False, score_test: bool = True) -> list[PlannedGroup]:
    """The groups of a sweep. Trains nothing, and opens neither a model nor its data.

    Args:
        compiled: compiles one step a group for its memory and its work. Without it, packs are what
            they would be without `sweep.memory_budget_gb`.
        score_test: as in `run_sweep`: which runs are finished hangs on it.
    """
    store, tasks = RunStore(config.out), LastTask()
    predict = functools.partial(predicted, tasks)
    sweep = config.sweep if compiled else replace(config.sweep, memory_budget_gb=None)
    found = packs(expand(config), sweep, predict=predict)
    return [
        _planned(
            pack,
            store,
            predict(pack.wide or pack.runs[0], pack.slots) if compiled else None,
            score_test,
        )
        for pack in found
    ]


def _planned(
    pack: Pack, store: RunStore, needs: Predicted | None, score_test: bool
) -> PlannedGroup:
    records = [read_run(store.folder(run_id(run))) for run in pack.runs]
    done = tuple(store.is_done(record.run_id, score_test=score_test) for record in records)
    left = len(done) - sum(done)
    known = [record.result.training_seconds for record in records if record.result is not None]
    seconds = None
    if measured := [one for one in known if one is not None]:
        seconds = left * statistics.fmean(measured)
    elif needs is not None and needs.flops is not None:
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
    """A rich table with a row for each run, the groups that share compiled programs ruled apart;
    what nothing is known of has no column.
    """
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
    shared = [_shared(group) for group in planned]
    headings = [name for name in _SHARED if any(name in columns for columns in shared)]
    if any(run.mesh.devices > 1 for group in planned for run in group.pack.runs):
        table.title += "; memory is of each device of its mesh"
    table.add_column("group")
    table.add_column("run", overflow="fold")
    # Whole, so that it can be copied: a narrow terminal breaks the description instead.
    table.add_column("id", no_wrap=True, overflow="fold")
    table.add_column("done")
    for heading in headings:
        numbers = "MB" in heading or heading == "time"
        table.add_column(heading, justify="right" if numbers else "left")

    words = describe_runs([run for group in planned for run in group.pack.runs])
    for number, (group, columns) in enumerate(zip(planned, shared, strict=True), start=1):
        runs = group.pack.runs
        # What a group shares stands in the row of its first run.
        for run, done in zip(runs, group.done, strict=True):
            first = run is runs[0]
            table.add_row(
                str(number) if first else "",
                in_terminal(words[run_id(run)]),
                run_id(run),
                "yes" if done else "",
                *(columns.get(name, "n/a") if first else "" for name in headings),
                end_section=run is runs[-1],
            )
    return table


_SHARED = (
    "side by side", "frozen base, MB", "trained, MB", "peak of a step, MB", "time", "padded lengths",
)  # fmt: skip


def _shared(group: PlannedGroup) -> dict[str, str]:
    """What is known of a group, by the heading of its column."""
    known = {"side by side": str(group.pack.slots)}
    if group.seconds is not None:
        known["time"] = duration(group.seconds)
    if (needs := group.needs) is not None:
        sizes = (needs.base_bytes, needs.trained_bytes, needs.peak_bytes)
        known |= zip(_SHARED[1:4], map(_megabytes, sizes), strict=True)
        known["padded lengths"] = ", ".join(map(str, needs.shapes))
    return known


def _megabytes(size: int | None) -> str:
    return "n/a" if size is None else f"{size / 1e6:,.1f}"
