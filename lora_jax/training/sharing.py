"""What runs have to agree in to share a compiled program, or to be trained side by side in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lora_jax.config import ADAPTERS, Config, flatten, resolve_targets
from lora_jax.core import hosts
from lora_jax.core.init import initializer_named
from lora_jax.core.variants import VARIANTS
from lora_jax.training.optim import structure_of


def program_key(run: Config) -> Config:
    """The run without what is data to its compiled program: equal for runs that can share one,
    padded to a common rank and targets.

    Rank, targets, alpha, scaling, layers, the rate of dropout (where there is one), the optimiser's
    rates, decay, clipping and schedule, and the seed are data.
    """
    dropout = 0.5 if run.lora.dropout else 0.0
    # What is kept in 8 bits depends on the size of an array: runs of other ranks, padded to one,
    # would be other runs.
    # Blocks of a rotation are of one size.
    rotates = VARIANTS[run.lora.variant].change == "oft"
    rank = run.lora.rank if run.optim.name == "adamw8bit" or rotates else 1
    lora = replace(run.lora, rank=rank, alpha=1.0, scaling="standard", dropout=dropout, layers=None)
    lora = replace(lora, init_from=None)  # Values, not shapes.
    if initializer_named(run.lora.init).reads == "shape":  # All of them give arrays of one kind.
        lora = replace(lora, init="kaiming")
    if run.lora.bias != "lora_only":  # Which biases are trained whole follows from the targets.
        lora = replace(lora, targets="all-linear")
    return replace(
        run,
        lora=lora,
        optim=structure_of(run.optim),
        train=replace(run.train, seed=0),
        out="",
        sweep=type(run.sweep)(),
    )


def stack_key(run: Config) -> Config:
    """Equal for runs that can be trained side by side: they share a program, the frozen base, and
    shapes of what they draw at random.

    An initialiser that chooses the codes of the base ties the base to its rank, scale, targets and
    seed. Dropout draws numbers for a batch's padded shape, which is common to all: with dropout,
    only runs of one order of the data stand side by side.
    """
    key = program_key(run)
    if initializer_named(run.lora.init).reads == "format":
        key = replace(
            key,
            lora=replace(run.lora, dropout=key.lora.dropout),
            train=replace(key.train, seed=run.train.seed),
        )
    if run.lora.dropout or run.model.drops:
        key = replace(key, train=replace(key.train, seed=run.train.seed))
    return key


def can_stack(run: Config) -> bool:
    """Whether the run has a stacked form: adapters have; the baselines, and runs whose optimiser is
    in host memory or that are those of several processes, are trained alone.
    """
    return run.method in ADAPTERS and not run.optim.offload and hosts.count() == 1


def differences(one: Config, two: Config) -> tuple[str, ...]:
    """The settings that keep two runs from standing side by side, as 'quant.format: nf4, int8';
    none if nothing does.
    """
    for run in (one, two):
        if run.optim.offload:
            return ("optim.offload: a run in host memory is trained alone",)
        if hosts.count() > 1:
            return ("processes: a run of several is trained alone",)
        if not can_stack(run):
            return (f"method: {run.method} is trained alone",)

    here, there = flatten(stack_key(one)), flatten(stack_key(two))
    mine, theirs = flatten(one), flatten(two)
    return tuple(
        f"{key}: {mine[key]}, {theirs[key]}"
        for key in here
        if here[key] != there[key] and mine[key] != theirs[key]
    )


def widest(runs: Sequence[Config]) -> Config | None:
    """A run with the largest rank and all targets of these: each fits into its shapes. None for
    runs without adapters.
    """
    if runs[0].method not in ADAPTERS:
        return None
    patterns = dict.fromkeys(resolve_targets(run.lora.targets) for run in runs)
    lora = replace(
        runs[0].lora,
        rank=max(run.lora.rank for run in runs),
        targets="|".join(f"(?:{pattern})" for pattern in patterns),
        layers=None,
    )
    return replace(runs[0], lora=lora)


def groups(runs: Sequence[Config]) -> list[tuple[Config | None, list[Config]]]:
    """Runs that share compiled programs, each group with its widest run (None for runs without
    adapters).

    Adapters of one format differ in rank and targets only through `scale`: each is padded to the
    group's largest rank and to the union of its targets. What else differs (format, model, data,
    batch, optimiser) makes another group.
    """
    found: dict[Config, list[Config]] = {}
    for run in runs:
        found.setdefault(program_key(run), []).append(run)
    return [(widest(members), members) for members in found.values()]
