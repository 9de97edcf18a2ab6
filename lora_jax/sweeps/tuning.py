"""A sweep whose cells are compared at their own best value of a nuisance setting, such as the
learning rate, chosen on validation data.

Every cell runs a small grid around its own value under seeds that are not scored, without a look at
the test split; the value with the lowest mean validation loss is its best, and where that stands at
an edge, the grid grows past it, a value at a time. Then `sweep.seeds` are run at the best, and they
alone are the cell's score. A run that diverges loses. A grid for each cell, and not a joint search:
each has the same number of tries, which is what makes the comparison fair (Choi et al. 2019, arXiv
1910.05446; Godbole et al. 2023, Deep Learning Tuning Playbook).

Each round of this is an ordinary sweep over cells (`sweep.tune.at` lists their values), so that
runs are packed, stacked, kept and resumed as any. A round begins when the one before is complete:
what it holds follows from the config and the results in the store, and whoever starts the same
sweep again, or beside this one, comes to the same rounds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lora_jax.config import Config, value_of
from lora_jax.sweeps.axes import check_key, read_axes, reads
from lora_jax.sweeps.grid import cell_id, expand, run_id
from lora_jax.sweeps.runner import Outcome, together
from lora_jax.sweeps.store import RunStore, read_run
from lora_jax.sweeps.tuned import Curve, as_value, write_curves

# Settings of these groups change how a model is trained, and not on what its loss is measured.
_GROUPS = ("lora", "quant", "baseline", "optim", "train")
_MEASURED = ("train.seed", "train.eval_examples", "train.eval_batch_size")
_PATIENCE = 5.0  # seconds between two looks at a run of another process

Points = Mapping[str, Sequence[float]]  # values by cell; none: the cell as it is
Runs = Mapping[tuple[str, float], Sequence[Config]]  # one a seed, by cell and value


def tune(
    config: Config,
    train: Callable[..., Outcome],
    *,
    say: Callable[[str], None] = print,
) -> tuple[Outcome, dict[str, Curve]]:
    """Tunes every cell of the sweep and trains it at its best value, round by round by `train`;
    what became of all runs, and the curve of each cell.

    A run of tuning that diverged is no failure of the sweep; a cell of which none came through is
    not scored, and its runs are.

    Args:
        train: runs a sweep into `config.out`, such as `run_sweep`; with `runs`, these of it, and
            with `score_test` False, not on the test split.
        say: gets a line for every round and every cell.

    Raises:
        ValueError: see `first_points`; or the setting, the axes or the seeds are not legal.
        StoreError: the store cannot be written.
    """
    settings, store = config.sweep.tune, RunStore(config.out)
    points = first_points(config)
    curves = {
        cell: Curve(settings.setting, settings.seeds, cell=cell)
        for cell, values in points.items()
        if values
    }
    outcomes: list[Outcome] = []
    wanted: Points = {cell: points[cell] for cell in curves}
    for number in range(1, settings.grow + 2):
        say(f"tuning {settings.setting}, round {number}: {len(wanted)} cells")
        outcome, found = _round(config, wanted, curves, train, say)
        outcomes.append(outcome)
        curves |= found
        past = {cell: curve.beyond for cell, curve in curves.items()}
        wanted = {cell: (value,) for cell, value in past.items() if value is not None}
        if not wanted:
            break

    for cell, curve in curves.items():
        say(f"{cell}: {_chosen(curve)}")
    last = scored(config, curves)
    if last is not None:
        for (cell, _), made in _runs_by_point(last).items():
            if cell in curves:
                curves[cell] = replace(curves[cell], scored=tuple(map(run_id, made)))
        write_curves(store.root, curves)
        outcomes.append(train(last))
    return _without_diverged(together(outcomes), store, curves), curves


def first_points(config: Config) -> dict[str, tuple[float, ...]]:
    """The first grid of each cell of the sweep, by the cell's id; none for a cell whose method does
    not read the setting.

    Raises:
        ValueError: the setting is no number that is above 0, is an axis as well, changes on what
            the loss is measured, or is read by no cell; or a value is none that it may have.
    """
    settings = config.sweep.tune
    _check_setting(config)
    found: dict[str, tuple[float, ...]] = {}
    for run in expand(stage(config, {}, settings.seeds[:1])):
        own = _grid(run, settings.setting, settings.factors) if reads(run, settings.setting) else ()
        found[cell_id(run, settings.setting)] = own
    if not any(found.values()):
        raise ValueError(
            f"config.sweep.tune.setting: no run of this sweep reads {settings.setting}. Tune a "
            "setting that its methods read, such as optim.learning_rate."
        )
    return found


def first_round(config: Config) -> Config:
    """The sweep that is trained first: every cell that is tuned, at the values of its first grid."""
    points = {cell: values for cell, values in first_points(config).items() if values}
    return stage(config, points, config.sweep.tune.seeds)


def size(config: Config) -> tuple[int, int]:
    """How many runs the sweep will have: at least, if no grid grows, and at most."""
    points, settings = first_points(config), config.sweep.tune
    seeds = len(settings.seeds)
    least = seeds * sum(map(len, points.values()))
    least += len(points) * len(config.sweep.seeds or (config.train.seed,))
    return least, least + seeds * settings.grow * sum(map(bool, points.values()))


def stage(config: Config, points: Points, seeds: Sequence[int]) -> Config:
    """The sweep whose runs are these values of these cells, one a seed; without points, of every
    cell as it is.
    """
    lines = tuple(
        f"{cell} = {', '.join(map(repr, values))}" if values else cell
        for cell, values in points.items()
    )
    settings = replace(config.sweep.tune, factors=(), at=lines)
    return replace(config, sweep=replace(config.sweep, seeds=tuple(seeds), tune=settings))


def scored(config: Config, curves: Mapping[str, Curve]) -> Config | None:
    """The sweep that is scored: every cell at its best value, under `sweep.seeds`. None if no cell
    has one.
    """
    points: dict[str, tuple[float, ...]] = {}
    for cell, values in first_points(config).items():
        if not values:
            points[cell] = ()
        elif (best := curves[cell].best) is not None:
            points[cell] = (best,)
    seeds = config.sweep.seeds or (config.train.seed,)
    return stage(config, points, seeds) if points else None


def _check_setting(config: Config) -> None:
    setting, where = config.sweep.tune.setting, "config.sweep.tune.setting"
    check_key(setting, setting, where=where)
    if setting.partition(".")[0] not in _GROUPS or setting in _MEASURED:
        raise ValueError(
            f"{where}: losses under several values of {setting} do not compare. Make it an axis "
            "(config.sweep.axes), or tune a setting of how a model is trained, such as "
            "optim.learning_rate."
        )
    axes = {key for axis in read_axes(config.sweep.axes) for key in axis.keys}
    if setting in axes or (setting == "lora.rank" and config.sweep.rank):
        raise ValueError(
            f"{where}: {setting} is an axis of this sweep, and a setting is compared or tuned. "
            "Take it out of the axes, or leave config.sweep.tune.factors empty."
        )


def _grid(run: Config, setting: str, factors: Sequence[float]) -> tuple[float, ...]:
    base = value_of(run, setting)
    if isinstance(base, bool) or not isinstance(base, (int, float)) or not base > 0:
        raise ValueError(
            f"config.sweep.tune.setting: {setting} is {base!r} in {run_id(run)}, and is tuned "
            "around a number above 0. Give it one, or tune another setting."
        )
    kind = type(base)
    values = (base if one == 1 else as_value(setting, base * one, kind) for one in factors)
    found = tuple(sorted(set(values)))
    if len(found) < 2:
        raise ValueError(
            f"config.sweep.tune.factors: {setting} = {base!r} times {factors} are {found}, one "
            "value. Spread the factors."
        )
    return found


def _round(
    config: Config,
    wanted: Points,
    curves: Mapping[str, Curve],
    train: Callable[..., Outcome],
    say: Callable[[str], None],
) -> tuple[Outcome, dict[str, Curve]]:
    """Trains the points that are wanted; what became of their runs, and the curves with them."""
    store, seeds = RunStore(config.out), config.sweep.tune.seeds
    round_ = stage(config, _with_known(wanted, curves), seeds)
    runs = {
        (cell, value): made
        for (cell, value), made in _runs_by_point(round_).items()
        if value in wanted.get(cell, ())
    }

    # Which runs are of tuning is on the disk before the first of them is.
    store.write_plan([run_id(run) for made in runs.values() for run in made])
    known = {**curves, **_with_runs(curves, runs)}
    write_curves(store.root, known)

    outcome = _trained(train, round_, runs, store, say)
    found = _with_losses(known, runs, store, outcome)
    write_curves(store.root, found)
    return outcome, found


def _with_known(wanted: Points, curves: Mapping[str, Curve]) -> Points:
    """The points of a round with those that came through before it: what is done already is passed
    over, but programs have the shapes of all cells, and are compiled once for all rounds.
    """
    return {
        cell: (*(value for value in curve.values if curve.losses[value] is not None), *own)
        for cell, curve in curves.items()
        for own in [wanted.get(cell, ())]
        if own or curve.best is not None
    }


def _runs_by_point(round_: Config) -> Runs:
    """The runs of a round, by cell and value."""
    setting = round_.sweep.tune.setting
    found: dict[tuple[str, float], list[Config]] = defaultdict(list)
    for run in expand(round_):
        found[cell_id(run, setting), value_of(run, setting)].append(run)
    return found


def _with_runs(curves: Mapping[str, Curve], runs: Runs) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for (cell, _), made in runs.items():
        curve = found.get(cell, curves[cell])
        found[cell] = replace(curve, tried=(*curve.tried, *map(run_id, made)))
    return found


def _trained(
    train: Callable[..., Outcome],
    round_: Config,
    runs: Runs,
    store: RunStore,
    say: Callable[[str], None],
) -> Outcome:
    """What became of a round. What another process runs is waited for: the next round depends on
    it.
    """
    ours = [run for made in runs.values() for run in made]
    outcomes = [train(round_, runs=ours, score_test=False)]
    while names := outcomes[-1].elsewhere:
        say(f"waiting for {len(names)} runs of another process, such as {names[0]}")
        while any(store.status(name) == "running" for name in names):
            time.sleep(_PATIENCE)
        outcomes.append(train(round_, runs=ours, score_test=False))
    return replace(together(outcomes), elsewhere=())


def _with_losses(
    curves: Mapping[str, Curve], runs: Runs, store: RunStore, outcome: Outcome
) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for (cell, value), made in runs.items():
        losses = [_loss_of(store, run_id(run), outcome) for run in made]
        known = [loss for loss in losses if loss is not None]
        mean = statistics.fmean(known) if len(known) == len(losses) else None
        curve = found.get(cell, curves[cell])
        found[cell] = replace(curve, losses={**curve.losses, value: mean})
    return found


def _loss_of(store: RunStore, name: str, outcome: Outcome) -> float | None:
    result = read_run(store.folder(name)).result
    # A run that was refused, as of other data, has a result that is not this sweep's.
    if result is None or name in outcome.failed:
        return None
    loss = result.value("validation", "loss")
    return loss if math.isfinite(loss) else None


def _chosen(curve: Curve) -> str:
    if curve.best is None:
        return f"no value of {curve.setting} came through, so it is not scored"
    at = f", the {curve.edge} that was tried" if curve.edge else ""
    return f"{curve.setting} = {curve.best:g}{at}: validation loss {curve.losses[curve.best]:.4f}"


def _without_diverged(outcome: Outcome, store: RunStore, curves: Mapping[str, Curve]) -> Outcome:
    """The outcome without failures that are an answer: a value of tuning that diverged."""
    lost = {
        name
        for curve in curves.values()
        if curve.best is not None
        for name in set(curve.tried) - set(curve.scored)
        if (read_run(store.folder(name)).error or "").startswith("Diverged")
    }
    return replace(outcome, failed=tuple(name for name in outcome.failed if name not in lost))
