"""Which runs of a sweep are trained side by side in one program, in which order programs come, and
what one will need.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from lora_jax.config import Config, SweepConfig
from lora_jax.core.fake_devices import with_devices
from lora_jax.core.mesh import bytes_on_device
from lora_jax.tasks.building import shapes_of
from lora_jax.tasks.opening import LastTask
from lora_jax.training.sharing import can_stack, differences, groups, stack_key


@dataclass(frozen=True)
class Predicted:
    """Bytes of a group's largest training step, on each device, and its work.

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
    then trains. For a mesh of more devices than there are, another process looks.
    """
    if wide.mesh.devices > jax.device_count():
        return with_devices(wide.mesh.devices, predicted, LastTask(), wide, slots)
    from lora_jax.training.needs import needs_of
    from lora_jax.training.programs import one_batch_a_shape
    from lora_jax.training.run import steps_of

    task = tasks.of(wide)
    batches = task.batches(
        "train", wide.train.batch_size, seed=wide.train.seed, accumulate=wide.train.accumulate
    )
    shapes = {
        batch["tokens"].shape[1]: shapes_of(dict(batch)) for batch in one_batch_a_shape(batches)
    }
    needs = needs_of(wide, task, shapes[max(shapes)], slots=slots)
    lengths = [planned.length for planned in batches.plan(0)]
    return Predicted(
        base_bytes=bytes_on_device(needs.frozen),
        trained_bytes=bytes_on_device(needs.state),
        peak_bytes=needs.peak_bytes,
        shapes=tuple(sorted(shapes)),
        flops=needs.flops,
        mean_length=sum(lengths) / len(lengths) / max(lengths),
        steps=steps_of(wide, task),
    )


@dataclass(frozen=True)
class Pack:
    """Runs that are trained together: `slots` at a time in one program, or with one slot each
    alone, one after another.

    `wide` is the run whose shapes all runs of the group are padded to, None where nothing is
    padded. `why` says what keeps the runs from those of the pack before.
    """

    runs: tuple[Config, ...]
    wide: Config | None
    slots: int
    why: tuple[str, ...] = ()


def packs(
    runs: Sequence[Config],
    sweep: SweepConfig,
    *,
    predict: Callable[[Config, int], Predicted] | None = None,
) -> list[Pack]:
    """The packs of a sweep, those that share compiled programs one after another.

    Runs of one program (`program_key`) are padded alike. Those that can share a base as well
    (`stack_key`) fill `sweep.stack` slots, evenly: 10 runs in at most 8 slots are two rounds of 5.
    Runs of one seed read the same batches in the same order, and fill the slots together; where no
    seed has two runs, they share the slots with an order of the data each.

    With halving, slots are filled again at any time, so that runs of all seeds wait in one line for
    them.

    With a memory budget, slots are taken away until the compiler's account of a training step fits
    into it; a run that does not fit alone is trained alone.

    Args:
        predict: what so many slots of a run's shapes need; by default `predicted`, with tasks of
            its own.
    """
    predict = predict or functools.partial(predicted, LastTask())
    found: list[Pack] = []
    for all_fit, members in groups(runs):
        wide = all_fit if len(members) > 1 else None
        for together in _side_by_side(members, sweep):
            slots = 1 if sweep.stack == 1 else _slots(all_fit, len(together), sweep, predict)
            found.append(Pack(tuple(together), wide, slots, _why(found, together)))
    # A model and its data are loaded once: what uses them stands together.
    bases = list(dict.fromkeys((pack.runs[0].model, pack.runs[0].data) for pack in found))
    return sorted(found, key=lambda pack: bases.index((pack.runs[0].model, pack.runs[0].data)))


def _side_by_side(members: Sequence[Config], sweep: SweepConfig) -> list[list[Config]]:
    """The runs of one program, cut into lists that can share slots."""
    halving = bool(sweep.halving.rungs)
    if not can_stack(members[0]) or (sweep.stack == 1 and not halving):
        return [list(members)]
    kinds: dict[Config, dict[int, list[Config]]] = {}
    for run in members:
        kinds.setdefault(stack_key(run), {}).setdefault(run.train.seed, []).append(run)
    found: list[list[Config]] = []
    for seeds in kinds.values():
        if any(len(same) > 1 for same in seeds.values()) and not halving:
            found += seeds.values()
        else:
            found.append([run for same in seeds.values() for run in same])
    return found


def _slots(
    wide: Config | None, count: int, sweep: SweepConfig, predict: Callable[[Config, int], Predicted]
) -> int:
    if wide is None or count == 1:
        return 1
    halving = bool(sweep.halving.rungs)
    fewest = (lambda most: min(most, count)) if halving else (lambda most: _even(count, most))
    slots = fewest(sweep.stack or count)
    if sweep.memory_budget_gb is None:
        return slots
    budget = sweep.memory_budget_gb * 1e9
    while slots > 1:
        needs = predict(wide, slots)
        if needs.peak_bytes is None or needs.peak_bytes <= budget:
            break
        share = (budget - needs.base_bytes) / (needs.peak_bytes - needs.base_bytes)
        slots = fewest(max(1, min(slots - 1, int(slots * share))))
    return slots


def _even(count: int, most: int) -> int:
    """The fewest slots that need no more rounds than `most` slots do."""
    return -(-count // -(-count // most))


def _why(before: Sequence[Pack], runs: Sequence[Config]) -> tuple[str, ...]:
    if not before:
        return ()
    other, own = before[-1].runs[0], runs[0]
    why = differences(other, own)
    seeds = (
        f"train.seed: {other.train.seed}, {own.train.seed} (each reads the data in its own order)"
    )
    return why or (seeds,)
