"""From one config with a sweep to the list of its runs, each with an id that depends on its content
alone.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lora_jax.config import (
    ADAPTERS,
    NO_FORMAT,
    Config,
    SweepConfig,
    TuneConfig,
    config_hash,
    default_of,
    name_of_targets,
    read_value,
    resolve_targets,
    split_items,
    validate,
    with_value,
)
from lora_jax.core.escapes import one_line
from lora_jax.sweeps.axes import Axis, read_axes, reads

_LONGEST_TARGETS = 24  # letters of a regex in a folder's name; the hash tells apart what this cuts
MOST_CELLS = 20_000  # a store of so many runs is still listed and reported in seconds


def expand(config: Config) -> list[Config]:
    """Every run of the sweep, with concrete method, adapter, format, learning rate and seed, and an
    empty sweep.

    Baselines × seeds come first, then format × targets × rank × seeds: runs of one format stand
    together, because they can share a compiled program. An empty axis keeps the config's value;
    without axes the config itself is the one adapter run. Format 'none' makes a lora run, any other
    a qlora run. `alpha` is config.lora.alpha at every rank. Then each of `sweep.axes` multiplies
    the runs that meet its condition and whose method reads it, in the order of the axes: a
    condition may ask for what an axis before it has set. Of a round of tuning, the cells that
    `sweep.tune.at` lists, at their values. Runs of equal content occur once.

    Raises:
        ValueError: a combination is not legal (see `lora_jax.config.validate`); no run reads an
            axis; two sets of targets have one name; the grid has more than `MOST_CELLS` cells; the
            sweep is tuned, so that its runs depend on losses.
    """
    sweep = config.sweep
    if sweep.tune.factors:
        raise ValueError(
            "The runs of a sweep that tunes are known round by round: train it with "
            "lora_jax.sweeps.tuning.tune, or leave config.sweep.tune.factors empty."
        )
    axes = read_axes(sweep.axes)
    seeds = sweep.seeds or (config.train.seed,)
    grid = {
        "format": sweep.format or (config.quant.format,),
        "targets": sweep.targets or (config.lora.targets,),
        "rank": sweep.rank or (config.lora.rank,),
        "seeds": seeds,
    }
    sides = {name: len(values) for name, values in grid.items()}
    _check_count(math.prod(sides.values()) + len(sweep.baselines) * len(seeds), sides)

    methods = sweep.baselines if config.method in ADAPTERS else (*sweep.baselines, config.method)
    plain = replace(config, quant=replace(config.quant, format=NO_FORMAT))
    runs = [_concrete(replace(plain, method=one), seed) for one in methods for seed in seeds]
    if config.method in ADAPTERS:
        runs += [_adapter_run(config, *values) for values in itertools.product(*grid.values())]

    for axis in axes:
        sides[", ".join(axis.keys)] = len(axis.points)
        _check_count(sum(len(axis.points) if axis.applies(run) else 1 for run in runs), sides)
        made = [axis.runs(run) for run in runs]
        if not any(axis.applies(run) and any(reads(run, key) for key in axis.keys) for run in runs):
            _refuse_unread(axis, runs)
        runs = [run for same in made for run in same]
    _check_names(run.lora.targets for run in runs if run.method in ADAPTERS)
    _check_names(run.quant.targets for run in runs if run.method == "qlora")
    if sweep.tune.at:
        runs = _at_points(runs, sweep.tune)
    for run in runs if axes or sweep.tune.at else ():
        try:
            validate(run)
        except ValueError as error:
            raise ValueError(f"The grid has a run that is not legal: {error}") from None
    return list({run_id(run): run for run in reversed(runs)}.values())[::-1]


def _check_count(count: int, sides: dict[str, int]) -> None:
    if count > MOST_CELLS:
        raise ValueError(
            f"A sweep has at most {MOST_CELLS:,} runs, and this grid has {count:,} cells: "
            f"{' x '.join(f'{size} ({name})' for name, size in sides.items())}. Shorten an axis, "
            "or write several sweeps into one folder."
        )


def _check_names(targets: Iterable[str]) -> None:
    patterns: dict[str, str] = {}
    for one in dict.fromkeys(targets):
        name, pattern = name_of_targets(one), resolve_targets(one)
        if patterns.setdefault(name, pattern) != pattern:
            raise ValueError(
                f"Targets of one name must be one set in a sweep, but {name!r} stands for "
                f"{patterns[name]!r} and {pattern!r}. Give one of them another name."
            )


def _refuse_unread(axis: Axis, runs: Sequence[Config]) -> None:
    if any(axis.applies(run) for run in runs):
        methods = ", ".join(dict.fromkeys(run.method for run in runs if axis.applies(run)))
        raise ValueError(
            f"config.sweep.axes: {axis.text!r} changes no run: runs of method {methods} do not "
            f"read {', '.join(axis.keys)}."
        )
    raise ValueError(
        f"config.sweep.axes: no run meets the condition of {axis.text!r}. An axis before it must "
        "set what it asks for."
    )


def run_id(config: Config) -> str:
    """A readable name of a run, equal for equal runs: `qlora-nf4-r4-all_linear-s0-1a2b3c4d`,
    `full-s0-1a2b3c4d`.

    The last part is `config_hash(config)`; settings that change no result (see there) leave the id
    as it is, and so do names that targets are given: a pattern is what it is.
    """
    parts = [config.method]
    if config.method in ADAPTERS:
        targets = re.sub(r"[^A-Za-z0-9]+", "_", shown_targets(resolve_targets(config.lora.targets)))
        shown = shown_format(config.quant.format, config.model.base_dtype)
        parts += [shown, f"r{config.lora.rank}"]
        parts.append(targets.strip("_")[:_LONGEST_TARGETS])
    return "-".join([*parts, f"s{config.train.seed}", config_hash(config)])


def cell_id(run: Config, setting: str) -> str:
    """A name of all runs that differ from this one in their seed and in `setting` alone."""
    plain = with_value(with_value(run, setting, default_of(setting)), "train.seed", 0)
    return run_id(plain).replace("-s0-", "-")


# What people call a base that is not quantised, by what it is kept in.
DENSE = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def shown_format(format: str, base_dtype: str = "float32") -> str:
    """The format as people read it: of a base that is not quantised its dtype."""
    return DENSE[base_dtype] if format == NO_FORMAT else format


def shown_targets(targets: str) -> str:
    """The name of the targets if they have one, else their regex."""
    return one_line(name_of_targets(targets))


def names_of_targets(targets: Iterable[str]) -> dict[str, str]:
    """{regex: what to call it} of all these: the regex is the set, which some may have named and
    others not. Of several names the first in the alphabet; where two sets have one name, the regex
    stands behind it.
    """
    given: dict[str, set[str]] = defaultdict(set)
    for one in dict.fromkeys(targets):
        given[resolve_targets(one)].add(shown_targets(one))
    own = {regex: shown_targets(regex) for regex in given}
    names = {regex: min(found - {own[regex]}, default=own[regex]) for regex, found in given.items()}
    shared = Counter(names.values())
    return {
        regex: name if shared[name] == 1 else f"{name} ({one_line(regex)})"
        for regex, name in names.items()
    }


def duration(seconds: float) -> str:
    """A time as people read it: '45 s', '12 min 05 s', '3 h 04 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _adapter_run(config: Config, format: str, targets: str, rank: int, seed: int) -> Config:
    return _concrete(
        replace(
            config,
            method="lora" if format == NO_FORMAT else "qlora",
            lora=replace(config.lora, rank=rank, targets=targets),
            quant=replace(config.quant, format=format),
        ),
        seed,
    )


def _at_points(runs: Sequence[Config], tune: TuneConfig) -> list[Config]:
    """The runs of cells that have a line, each at its values; a cell without values as it is."""
    values = {}
    for line in tune.at:
        cell, _, right = (part.strip() for part in line.partition("="))
        values[cell] = [read_value(tune.setting, item) for item in split_items(right)]
    cells = [(run, values.get(cell_id(run, tune.setting))) for run in runs]
    return [
        made
        for run, own in cells
        if own is not None
        for made in ([with_value(run, tune.setting, value) for value in own] or [run])
    ]


def _concrete(config: Config, seed: int) -> Config:
    """The run with its seed and its method's learning rate, and no sweep left."""
    learning_rate = getattr(config.sweep.learning_rate, config.method) or config.optim.learning_rate
    return replace(
        config,
        optim=replace(config.optim, learning_rate=learning_rate),
        train=replace(config.train, seed=seed),
        sweep=SweepConfig(),
    )
