"""What makes a comparison empty before its statistics begin: arms that are one, a best at the edge of
what was tried, a test that everyone passes. Axes that no run reads are errors: `sweeps/grid.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lora_jax.config import (
    ADAPTERS,
    TARGETS,
    Config,
    Targets,
    built,
    canonical,
    kind_of,
    name_of_targets,
    resolve_targets,
)
from lora_jax.core.escapes import in_markdown
from lora_jax.core.init import initializer_named
from lora_jax.core.lowrank import LoraSpec
from lora_jax.sweeps.axes import Axis, read_axes
from lora_jax.sweeps.cells import Cell, axes, levels, measure, seed_of, shown
from lora_jax.sweeps.comparisons import LOSS, choice, ranked
from lora_jax.sweeps.grid import run_id


def limits_of(cells: Sequence[Cell]) -> list[str]:
    """Sentences of Markdown about these adapters of one data set and model: what their scores
    cannot show, however many seeds there are.
    """
    return [*_ceiling(cells), *_same_results(cells), *_at_an_edge(cells)]


def _ceiling(cells: Sequence[Cell]) -> list[str]:
    said = measure(cells)
    values = {value for cell in cells for value in cell.by_seed().values()}
    if len(cells) < 2 or not said.share or len(values) > 1 or not values <= {0.0, 1.0}:
        return []
    return [
        f"Every run reaches a test {said.label} of {said.text(values.pop())}: this test set cannot "
        "tell these settings apart. Take a harder one, or compare losses."
    ]


def _same_results(cells: Sequence[Cell]) -> list[str]:
    """Cells that gave the same to the last digit: to train them was to do one thing twice."""
    groups: dict[object, list[Cell]] = defaultdict(list)
    for cell in cells:
        scores = [
            (seed_of(run), split, name, score.value)
            for run in cell.runs
            for split, named in run.result.scores.items()
            for name, score in named.items()
        ]
        if any(name == LOSS for _, _, name, _ in scores):
            groups[tuple(sorted(scores))].append(cell)
    return [
        f"{', '.join(in_markdown(cell.name) for cell in same)} gave equal losses and scores to the "
        "last digit under every seed: they are one setting under several names."
        for same in groups.values()
        if len(same) > 1
    ]


def _at_an_edge(cells: Sequence[Cell]) -> list[str]:
    best, text = ranked(cells)[0], []
    place = next(n for n, cell in enumerate(cells) if cell is best)
    for axis, column in axes(cells).items():
        numbers = [
            level
            for level in levels(column)
            if isinstance(level, (int, float)) and not isinstance(level, bool)
        ]
        if len(numbers) > 2 and column[place] in (numbers[0], numbers[-1]):
            end = "smallest" if column[place] == numbers[0] else "largest"
            text.append(
                f"The setting with {choice(cells).words} has the {end} {in_markdown(axis)} that was "
                f"tried, {shown(column[place])}: a better one may lie beyond."
            )
    return text


def cautions(config: Config, runs: Sequence[Config]) -> list[str]:
    """What can be said of a sweep before its first run: plain sentences. `runs` are those of
    `expand(config)`.
    """
    return [
        *_repeated(config),
        *_named_anew(runs),
        *_one_in_effect(runs),
        *_single_seed(runs),
    ]


def _repeated(config: Config) -> list[str]:
    sweep = config.sweep
    values = {
        "sweep.rank": sweep.rank, "sweep.format": sweep.format, "sweep.seeds": sweep.seeds, "sweep.baselines": sweep.baselines,
        "sweep.targets": tuple(map(resolve_targets, sweep.targets)),
    }  # fmt: skip
    values |= {axis.text: _in_effect(axis) for axis in read_axes(sweep.axes)}
    said = [
        f"config.{name} has a value twice: its runs are trained once."
        for name, given in values.items()
        if len(set(given)) < len(given)
    ]
    return said + [f"{' and '.join(same)} are one set of targets." for same in _one_set(config)]


def _in_effect(axis: Axis) -> tuple[tuple[Any, ...], ...]:
    """The points of an axis, targets as their regexes."""
    named = [kind_of(key) == Targets for key in axis.keys]
    return tuple(
        tuple(
            resolve_targets(value) if is_named else value for value, is_named in zip(point, named)
        )
        for point in axis.points
    )


def _one_set(config: Config) -> list[list[str]]:
    """The names of one regex, where the sweep has several."""
    given = [("lora.targets", targets) for targets in config.sweep.targets]
    for axis in read_axes(config.sweep.axes):
        for key, *values in zip(axis.keys, *axis.points):
            given += [(key, targets) for targets in values if kind_of(key) == Targets]
    names: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for key, targets in given:
        names[key, resolve_targets(targets)][repr(name_of_targets(targets))] = None
    return [list(same) for same in names.values() if len(same) > 1]


def _targets_of(run: Config) -> dict[str, str]:
    """{setting: targets} of those that the run's method reads."""
    adapted = {"lora.targets": run.lora.targets} if run.method in ADAPTERS else {}
    return adapted | ({"quant.targets": run.quant.targets} if run.method == "qlora" else {})


def _named_anew(runs: Sequence[Config]) -> list[str]:
    given = dict.fromkeys(targets for run in runs for targets in _targets_of(run).values())
    return [
        f"Targets {name!r} are {resolve_targets(one)!r} in this sweep, not the set that lora_jax "
        f"calls so, {TARGETS[name]!r}."
        for one in given
        if (name := name_of_targets(one)) in TARGETS and resolve_targets(one) != TARGETS[name]
    ]


def target_cautions(runs: Sequence[Config], *, fetch: bool) -> list[str]:
    """What the models' own names say of the targets of these runs: plain sentences. Weights are not
    read; `fetch` says whether models that are not here are fetched.

    Raises:
        ValueError: targets match no site of their model, and near ones are listed.
    """
    from lora_jax.tasks.targets import count_weights, open_sites

    wanted: dict[tuple[Any, ...], dict[tuple[str, str], str]] = defaultdict(dict)
    for run in runs:
        for key, targets in _targets_of(run).items():
            model = (run.model.name, run.model.revision, run.model.scan)
            wanted[model].setdefault((key, resolve_targets(targets)), targets)

    said = []
    for (name, revision, scan), targets in wanted.items():
        try:
            opened = open_sites(name, revision=revision, scan=scan, fetch=fetch)
        except (OSError, ValueError, ImportError) as error:  # Its runs fail with it, or fetch it.
            said.append(f"Targets in {name} were not looked at: {error}")
            continue
        sets: dict[tuple[str, frozenset[str]], list[str]] = defaultdict(list)
        for (key, _), one in targets.items():
            taken = opened.taken(one)
            sets[key, frozenset(site.path for site in taken)].append(repr(name_of_targets(one)))
        said += [
            f"Targets {' and '.join(same)} take the same "
            f"{count_weights([opened.sites[path] for path in paths])} weights of {name}: arms that "
            "differ in them alone are one."
            for (_, paths), same in sets.items()
            if len(same) > 1
        ]
    return said


def _one_in_effect(runs: Sequence[Config]) -> list[str]:
    """Arms whose settings differ, and what is done with them does not."""
    groups: dict[str, list[Config]] = defaultdict(list)
    for run in runs:
        if run.method in ADAPTERS and run.train.seed == runs[0].train.seed:
            groups[repr(sorted(_effect(run).items()))].append(run)
    return [
        f"{', '.join(map(run_id, same))} are one in effect: between them, "
        f"{', '.join(_differing(same))} changes nothing."
        for same in groups.values()
        if len(same) > 1
    ]


def _effect(run: Config) -> dict[str, Any]:
    """The settings by what they do: the scale in place of alpha and its rule, and none that another
    setting puts out of play.
    """
    settings = canonical(run)
    idle = ["lora.scaling"]
    idle += [] if run.quant.double else ["quant.second_level"]
    idle += [] if run.lora.variant == "qa_lora" else ["lora.group_size"]
    idle += [] if run.lora.variant == "gralora" else ["lora.blocks"]
    idle += [] if run.lora.merge_aware else ["lora.merge_scales"]
    if not initializer_named(run.lora.init).measures:
        idle.append("lora.calibration_batches")
    if run.lora.variant != "adalora":
        idle += [key for key in settings if key.startswith("optim.adalora.")]
    # 12 digits: 2 / 4 * 4 and 2 are one scale.
    settings["lora.alpha"] = float(f"{built(LoraSpec, run.lora).effective_scale:.12g}")
    return {key: value for key, value in settings.items() if key not in idle}


def _differing(runs: Sequence[Config]) -> list[str]:
    settings = list(map(canonical, runs))
    return [key for key in settings[0] if len({repr(one.get(key)) for one in settings}) > 1]


def _single_seed(runs: Sequence[Config]) -> list[str]:
    if len(runs) < 2 or len({run.train.seed for run in runs}) > 1:
        return []
    return [
        "There is one seed a setting: the report will describe these runs and support no comparison "
        "between settings. Three or more seeds do, such as --config.sweep.seeds=0,1,2."
    ]
