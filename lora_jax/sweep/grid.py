"""From one config with a sweep to the list of its runs, each with an id that depends on its content alone."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

from lora_jax.config import ADAPTERS, NO_FORMAT, TARGETS, Config, SweepConfig, config_hash, resolve_targets

_LONGEST_TARGETS = 24  # letters of a regex in a folder's name; the hash tells apart what this cuts


def expand(config: Config) -> list[Config]:
    """Every run of the sweep, with concrete method, adapter, format, learning rate and seed, and an empty sweep.

    Baselines × seeds come first, then format × targets × rank × seeds: runs of one format stand together, because they
    can share a compiled program. An empty axis keeps the config's value; without axes the config itself is the one
    adapter run. Format 'none' makes a lora run, any other a qlora run. `alpha` is config.lora.alpha at every rank.
    Runs of equal content occur once.

    Raises:
        ValueError: a combination is not legal; see `lora_jax.config.validate`.
    """
    sweep = config.sweep
    seeds = sweep.seeds or (config.train.seed,)
    runs = [_baseline(config, method, seed) for method, seed in itertools.product(sweep.baselines, seeds)]
    if config.method not in ADAPTERS:
        runs += [_baseline(config, config.method, seed) for seed in seeds]
    else:
        grid = itertools.product(
            sweep.format or (config.quant.format,),
            sweep.targets or (config.lora.targets,),
            sweep.rank or (config.lora.rank,),
            seeds,
        )
        runs += [_adapter_run(config, *cell) for cell in grid]
    return list({run_id(run): run for run in reversed(runs)}.values())[::-1]


def run_id(config: Config) -> str:
    """A readable name of a run, equal for equal runs: `qlora-nf4-r4-all_linear-s0-1a2b3c4d`, `full-s0-1a2b3c4d`.

    The last part is `config_hash(config)`; settings that change no result (see there) leave the id as it is.
    """
    parts = [config.method]
    if config.method in ADAPTERS:
        parts += [shown_format(config.quant.format), f"r{config.lora.rank}"]
        parts += [re.sub(r"[^A-Za-z0-9]+", "_", shown_targets(config.lora.targets)).strip("_")[:_LONGEST_TARGETS]]
    return "-".join([*parts, f"s{config.train.seed}", config_hash(config)])


def shown_format(format: str) -> str:
    """The format as people read it: the base that is not quantised is 'fp32'."""
    return "fp32" if format == NO_FORMAT else format


def shown_targets(targets: str) -> str:
    """The name of the targets if they have one, else their regex: a name and its regex are one thing."""
    names = {regex: name for name, regex in TARGETS.items()}
    return names.get(resolve_targets(targets), targets)


def _baseline(config: Config, method: str, seed: int) -> Config:
    quant = replace(config.quant, format=NO_FORMAT)
    return _concrete(replace(config, method=method, quant=quant), seed)


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


def _concrete(config: Config, seed: int) -> Config:
    """The run with its seed and its method's learning rate, and no sweep left."""
    learning_rate = getattr(config.sweep.learning_rate, config.method) or config.optim.learning_rate
    return replace(
        config,
        optim=replace(config.optim, learning_rate=learning_rate),
        train=replace(config.train, seed=seed),
        sweep=SweepConfig(),
    )
