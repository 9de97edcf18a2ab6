"""A run that fits a stated amount of memory: format, micro-batches and recomputation are chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lora_jax.config import ADAPTERS, NO_FORMAT, Config
from lora_jax.tasks.task import Task
from lora_jax.training import allocator
from lora_jax.training.needs import needs_of
from lora_jax.training.programs import forget_programs, one_batch_a_shape, programs_for
from lora_jax.training.run import steps_of

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_FORMATS = (NO_FORMAT, "int8", "nf4")  # from exact to small
# What a run opens once its steps are compiled (iterators, logs, Orbax and its copies), and room
# that the heap loses between arrays: four runs of MiniLM under other budgets held 81 to 155 MiB
# more than their steps account for.
_BESIDE = 160 * 2**20


def parse_bytes(text: str, what: str = "config.memory_budget") -> int:
    """The bytes of '2GiB', '1.5GB' or '800MB'; `what` is what says so, for errors.

    Raises:
        ValueError: it is no size.
    """
    number = text.strip().rstrip("BKMGibkmg ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = float(number) * _UNITS[unit or "B"]
    except (ValueError, KeyError):
        size = 0.0
    if size < 1:
        raise ValueError(f"{what} needs a size such as 2GiB, 1.5GB or 800MB, got {text!r}.")
    return int(size)


def resident_bytes() -> tuple[int, int]:
    """What the process holds now, and the most that it held so far."""
    peak = allocator.peak_bytes()
    return allocator.resident_bytes() or peak, peak


def fit_budget(
    config: Config, task: Task, *, resident: Callable[[], tuple[int, int]] = resident_bytes
) -> tuple[Config, list[str]]:
    """The config with the least change that fits `config.memory_budget`, and sentences on what was
    chosen and why.

    The base keeps its format if that can fit at all, else it is stored in int8, else in nf4 (which
    costs quality; only adapters can). Within a format the first that fits is taken of: as
    configured, blocks recomputed in the backward pass, and with that the batch in 2, 4, ... parts
    (which cost time alone). Batches of the evaluation are made no larger than those of training.
    What is counted: the process as it is with the data and the weights loaded, and what the
    compiled steps hold on top by the compiler's own account, their arguments included. Before a
    choice is taken, its steps are compiled for every length that its batches have, since programs
    take memory, too (some 25 MB each for MiniLM); the run that follows in this process uses them.

    Raises:
        ValueError: nothing fits; the least that was needed is named. Or the budget is no size.
    """
    if config.memory_budget is None:
        return config, []
    budget = parse_bytes(config.memory_budget)
    least: tuple[int, str] | None = None
    said = []

    for candidate in _formats(replace(config, memory_budget=None)):
        choices = list(_choices(candidate))
        smallest = estimate(choices[-1], task, resident)
        forget_programs()  # Programs that are not taken shall not be counted with others.
        if least is None or smallest < least[0]:
            least = smallest, describe_choice(choices[-1])
        if smallest > budget:
            said.append(
                f"format {candidate.quant.format}: {describe_choice(choices[-1])} still needs "
                f"{_mib(smallest)} MiB"
            )
            continue

        for choice in choices:
            need = smallest if choice is choices[-1] else estimate(choice, task, resident)
            if need <= budget:
                need = estimate(choice, task, resident, every_length=True)
            if need <= budget:
                said.append(
                    f"chosen: {describe_choice(choice)}, about {_mib(need)} of {_mib(budget)} MiB"
                )
                return choice, said
            said.append(f"{describe_choice(choice)} would need {_mib(need)} MiB")
            forget_programs()
        least = min(least, (need, describe_choice(choices[-1])))

    raise ValueError(
        f"config.memory_budget is {_mib(budget)} MiB, and the least that was found to need memory "
        f"is {_mib(least[0])} MiB ({least[1]}). Raise it, shorten data.max_length, take a smaller "
        "model, or method qlora, with which the base can be stored in few bits."
    )


def estimate(
    config: Config,
    task: Task,
    resident: Callable[[], tuple[int, int]] = resident_bytes,
    *,
    every_length: bool = False,
) -> int:
    """Bytes that the process needs at most while it trains and evaluates: measured so far, its
    steps' own account on top, and what a run holds besides.

    The steps are compiled for the longest batches, or for batches of every length.
    """
    task = replace(task, model=task.model.clone(remat=config.model.remat))
    train = config.train
    programs = programs_for(task.per_example, config, steps_of(config, task))

    batches = _batches(task, "train", train.batch_size, train.accumulate, every_length)
    needs = [needs_of(config, task, batch) for batch in batches]
    sizes = [one.peak_bytes for one in needs]
    sizes += [
        programs.evaluate.peak_bytes(needs[0].frozen, needs[0].state.trainable, batch)
        for batch in _batches(task, "test", train.eval_batch_size, 1, every_length)
    ]
    allocator.release_freed_memory()  # What compiling took.
    now, peak = resident()
    return max(peak, now + _BESIDE + max(size or 0 for size in sizes))


def describe_choice(config: Config) -> str:
    """'format nf4, batch 16 in 4 parts, blocks recomputed, evaluation 16 at a time'."""
    train = config.train
    return (
        f"format {config.quant.format}, batch {train.batch_size} in {train.accumulate} "
        f"part{'s' * (train.accumulate > 1)}, blocks "
        f"{'recomputed' if config.model.remat else 'kept'}, evaluation {train.eval_batch_size} at "
        "a time"
    )


def _formats(config: Config) -> Iterator[Config]:
    """The config with its own format, and with every smaller one if it trains adapters."""
    yield config
    own = config.quant.format
    if config.method in ADAPTERS and own in _FORMATS:
        for name in _FORMATS[_FORMATS.index(own) + 1 :]:
            yield replace(config, method="qlora", quant=replace(config.quant, format=name))


def _choices(config: Config) -> Iterator[Config]:
    """From the quickest to the one that needs least."""
    train = config.train
    yield config
    parts = train.accumulate
    while train.batch_size % parts == 0:
        evaluation = min(train.eval_batch_size, train.batch_size // parts)
        yield replace(
            config,
            model=replace(config.model, remat=True),
            train=replace(train, accumulate=parts, eval_batch_size=evaluation),
        )
        if parts == train.batch_size:
            return
        more = range(min(2 * parts, train.batch_size), train.batch_size + 1)
        parts = next(n for n in more if train.batch_size % n == 0)


def _batches(
    task: Task, split: str, batch_size: int, accumulate: int, every_length: bool
) -> list[Any]:
    """A batch of each length that the split has, or of the longest alone."""
    batches = task.batches(split, batch_size, shuffle=False, accumulate=accumulate)
    found = list(one_batch_a_shape(batches))
    return found if every_length else [max(found, key=lambda batch: batch["tokens"].shape[-1])]


def _mib(size: int) -> int:
    return round(size / 2**20)
