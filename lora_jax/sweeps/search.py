"""Search beyond a grid: Optuna asks for settings, the sweep trains them as ordinary runs of the
store, and the losses guide what is asked next.

A line of `sweep.search.space` spells a range, `optim.learning_rate = log 1e-4 .. 1e-2`, or choices,
`lora.rank = 1, 4, 16`. What a trial is worth is its validation loss, the mean over `sweep.seeds`.
The trials are kept in search.journal of the store (Optuna's journal storage, which its dashboard
reads), so that a search that was stopped goes on: trials that were asked and have no result are
trained first.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.config import (
    Config,
    SearchConfig,
    from_config_dict,
    read_value,
    split_items,
    to_dict,
)
from lora_jax.core.extras import needs
from lora_jax.io.contents import changed_contents, contents
from lora_jax.sweeps.axes import check_key
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.halving import Halving
from lora_jax.sweeps.lock import Lock, RunLocked
from lora_jax.sweeps.runner import Outcome, together
from lora_jax.sweeps.settings import INCOMPARABLE, changed_settings
from lora_jax.sweeps.store import RunStore, is_run, read_run

FILE = "search.journal"
_RANGE = re.compile(r"(?P<log>log\s+)?(?P<low>\S+)\s*\.\.\s*(?P<high>\S+)")


@dataclass(frozen=True)
class Dimension:
    """A setting and what it may be: one of `choices`, or between `low` and `high` (both included;
    whole numbers if both are).
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def __str__(self) -> str:
        values = (
            ", ".join(map(str, self.choices)) or f"{'log ' * self.log}{self.low} .. {self.high}"
        )
        return f"{self.key} = {values}"

    def ask(self, trial: Any) -> Any:
        """The value that an Optuna trial gives it."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        suggest = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return suggest(self.key, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Trial:
    """A trial that is over: its settings, its mean validation loss (None if it failed), and the
    runs it consists of.
    """

    number: int
    settings: dict[str, Any]
    loss: float | None
    runs: tuple[str, ...]


def read_dimension(text: str) -> Dimension:
    """The dimension that a line spells: `KEY = LOW .. HIGH`, `KEY = log LOW .. HIGH` or `KEY =
    VALUE, VALUE, ...`.

    Raises:
        ValueError, TypeError: the line is none of these, a range is empty, or a value is none that
        the setting can have.
        UnknownKeyError: there is no such setting; near names are listed.
    """
    key, equals, right = (part.strip() for part in text.partition("="))
    items = split_items(right)
    if not equals or not items:
        raise ValueError(
            "config.sweep.search.space: a line reads 'KEY = LOW .. HIGH', 'KEY = log LOW .. HIGH' "
            f"or 'KEY = VALUE, VALUE'; got {text!r}."
        )

    check_key(key, text, where="config.sweep.search.space")
    found = _RANGE.fullmatch(right)
    if found is None:
        return Dimension(key, tuple(read_value(key, item) for item in items))

    low, high = (read_value(key, found[name]) for name in ("low", "high"))
    if isinstance(low, bool) or not isinstance(low, (int, float)):
        raise ValueError(
            f"config.sweep.search.space: {key} is no number, so it has no range; list its values, "
            f"got {text!r}."
        )
    if not low < high or (found["log"] and low <= 0):
        raise ValueError(
            "config.sweep.search.space: a range "
            f"grows{', and with log begins above 0' if found['log'] else ''}; got {text!r}."
        )
    return Dimension(key, (), low, high, bool(found["log"]))


def read_space(config: Config) -> tuple[Dimension, ...]:
    """The dimensions of a config's search.

    Raises:
        ValueError: there are none, a key occurs twice, or the grid would be searched as well (it
            may have seeds and baselines alone).
    """
    sweep = config.sweep
    if not sweep.search.space:
        raise ValueError(
            "config.sweep.search needs a space: lines such as 'optim.learning_rate = log 1e-4 .. "
            "1e-2' or 'lora.rank = 1, 4, 16'."
        )

    grid = {"rank": sweep.rank, "format": sweep.format, "targets": sweep.targets}
    if several := [name for name, values in grid.items() if len(values) > 1]:
        raise ValueError(
            f"A search tries {sweep.search.trials} points, not a grid: move "
            f"config.sweep.{several[0]} into config.sweep.search.space."
        )
    if sweep.axes:
        raise ValueError(
            "A search has no axes: move config.sweep.axes into config.sweep.search.space."
        )

    space = tuple(map(read_dimension, sweep.search.space))
    keys = [dimension.key for dimension in space]
    if unlike := [key for key in keys if key in INCOMPARABLE]:
        raise ValueError(
            f"A search orders its trials by their losses, and those of runs that differ in "
            f"{unlike[0]!r} do not compare. Make a search of each."
        )
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(
            f"config.sweep.search.space: {twice[0]} stands in two lines. Put its values into one."
        )
    return space


def search(
    config: Config,
    train: Callable[[Config], Outcome],
    *,
    batch: int = 1,
    say: Callable[[str], None] = print,
) -> tuple[Outcome, list[Trial]]:
    """Trains `sweep.search.trials` trials, `batch` at a time, each batch as one sweep by `train`;
    what became of the runs, and the trials, the best first.

    A trial whose run fails is recorded as failed and counts; one that was stopped at a rung tells
    the loss that it had there.

    Args:
        train: runs a sweep into `config.out`, such as `run_sweep`.
        batch: trials that are asked together: as many as are trained at once.
        say: gets a line for every trial.

    Raises:
        ValueError: see `read_space`; or the store holds a search of another space, or one whose
            trials were trained with other settings, of other data or another model.
        RunLocked: another process goes on with the store's search.
        ModuleNotFoundError: Optuna is not installed.
    """
    space = read_space(config)
    plain = replace(config, sweep=replace(config.sweep, search=SearchConfig()))
    root = RunStore(config.out).root
    root.mkdir(parents=True, exist_ok=True)
    lock = Lock(root / "search.lock")
    try:
        lock.acquire()
    except RunLocked as held:
        raise RunLocked(
            f"Another process goes on with the search in {root}: two would ask for each other's "
            "trials. Wait for it, or search in another folder (--config.out)."
        ) from held
    try:
        study = open_study(root)
        _check_space(study, config)
        _check_recorded(study, plain, len(space))
        return _go_on(study, config, plain, space, train, batch, say)
    finally:
        lock.release()


def _go_on(
    study: Any,
    config: Config,
    plain: Config,
    space: Sequence[Dimension],
    train: Callable[[Config], Outcome],
    batch: int,
    say: Callable[[str], None],
) -> tuple[Outcome, list[Trial]]:
    outcomes = []
    while True:
        trials = _whole(study, len(space))
        points = {trial.number: trial.params for trial in trials if not trial.state.is_finished()}
        # A batch that was interrupted is trained as it was: with other trials beside it, its
        # checkpoints might have other shapes. None of it was trained before all of it was asked.
        begun = {*points} <= {*study.user_attrs.get("begun", ())}
        missing = (0 if begun else -len(trials) % batch) if points else batch
        for place in range(min(missing, config.sweep.search.trials - len(trials))):
            trial = _ask(study, config.sweep.search.seed, len(trials) + place)
            points[trial.number] = {dimension.key: dimension.ask(trial) for dimension in space}
        if not points:
            return together(outcomes), _trials(study, plain, len(space))
        study.set_user_attr("begun", [*points])
        outcomes.append(train(_sweep_of(plain, list(points.values()))))
        for number, settings in points.items():
            _tell(study, plain, number, settings, say)


def open_study(root: Path) -> Any:
    """The study of a store, made if there is none.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
    """
    with needs("search"):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    root.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = JournalStorage(JournalFileBackend(str(root / FILE)))
        return optuna.create_study(storage=storage, study_name="lora_jax", load_if_exists=True)


def _whole(study: Any, dimensions: int) -> list[Any]:
    """The trials that have a value for every dimension. One that a kill has left without counts as
    failed, and another is asked in its place.
    """
    with needs("search"):
        from optuna.trial import TrialState

    found = study.get_trials(deepcopy=False)
    for trial in found:
        if len(trial.params) < dimensions and not trial.state.is_finished():
            study.tell(trial.number, state=TrialState.FAIL)
    return [trial for trial in found if len(trial.params) == dimensions]


def _ask(study: Any, seed: int, place: int) -> Any:
    """The trial at this place of the search. What it draws follows from the seed, its place and
    the trials before it, so that a search that was stopped draws what it would have drawn.
    """
    with needs("search"):
        import optuna

    # Many trials are asked before one is told: those that are being trained count as bad ones, so
    # that no two are alike.
    drawn = np.random.SeedSequence([seed, place]).generate_state(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(seed=int(drawn[0]), constant_liar=True)
    return study.ask()


def _check_space(study: Any, config: Config) -> None:
    before, wanted = study.user_attrs.get("space"), list(config.sweep.search.space)
    if before is not None and before != wanted:
        raise ValueError(
            f"{RunStore(config.out).root / FILE} holds a search of another space: {before}, now "
            f"{wanted}. Use the same, another folder (--config.out), or delete the file: finished "
            "runs stay, and are not trained again where a trial asks for their settings."
        )
    study.set_user_attr("space", wanted)


def _check_recorded(study: Any, config: Config, dimensions: int) -> None:
    """Nothing if the trials so far are runs of this config, which is then recorded: their losses
    guide what is asked next, and are shown beside what comes.
    """
    trials = _whole(study, dimensions)
    then, made_of = _recorded(study), contents(config.names, config.model.revision)
    changed = ""
    if trials and then is not None:
        changed = ", ".join(
            f"what {name} stands for"
            for name in changed_contents(study.user_attrs.get("contents") or {}, made_of)
        )
        if then.sweep.halving != config.sweep.halving:
            changed = "config.sweep.halving"
        for trial in trials:
            before, now = (_configs(one, trial.params) for one in (then, config))
            # The mean over other seeds is another loss.
            if [*map(run_id, before)] != [*map(run_id, now)]:
                seeds = f"the seeds are {then.sweep.seeds} there and {config.sweep.seeds} here"
                changed = changed_settings(before[0], now[0]) or seeds
                break
    elif trials:
        # Of a version that recorded none, or others: the runs themselves say what they were.
        store = RunStore(config.out)
        done = [trial for trial in trials if trial.value is not None]
        lost = [trial.number for trial in done if not _are_there(store, config, trial.params)]
        changed = f"trial {lost[0]} has no run with the settings of now" if lost else ""
        for trial in () if lost else done:
            loss = _loss(config, trial.params)
            if loss is None or not math.isclose(loss, trial.value, rel_tol=1e-9):
                changed = f"the loss of trial {trial.number} is not that of its runs of now"
                break
    if changed:
        raise ValueError(
            f"{RunStore(config.out).root / FILE} holds a search under other settings: {changed}. "
            "Use the same, another folder (--config.out), or delete the file: finished runs stay."
        )
    study.set_user_attr("config", to_dict(config))
    study.set_user_attr("contents", made_of)


def _recorded(study: Any) -> Config | None:
    try:
        return from_config_dict(study.user_attrs["config"])
    except (KeyError, TypeError, ValueError):
        return None


def _are_there(store: RunStore, config: Config, settings: Mapping[str, Any]) -> bool:
    return all(is_run(store.folder(name)) for name in _runs(config, settings))


def _sweep_of(config: Config, points: Sequence[Mapping[str, Any]]) -> Config:
    """The sweep whose runs are these points, as one zipped axis; the comma at the end keeps a
    single point in its brackets.
    """
    keys = list(points[0])
    spelled = [[_spelled(point[key]) for key in keys] for point in points]
    values = [f"({', '.join(point)})" if len(keys) > 1 else point[0] for point in spelled]
    return replace(
        config, sweep=replace(config.sweep, axes=(f"{', '.join(keys)} = {', '.join(values)},",))
    )


def _spelled(value: Any) -> str:
    return repr(value) if isinstance(value, (str, float)) else str(value)


def _runs(config: Config, settings: Mapping[str, Any]) -> list[str]:
    """The ids of the runs of one trial."""
    return [*map(run_id, _configs(config, settings))]


def _configs(config: Config, settings: Mapping[str, Any]) -> list[Config]:
    """The runs of one trial: one a seed."""
    alone = _sweep_of(config, [settings])
    return expand(replace(alone, sweep=replace(alone.sweep, baselines=())))


def _tell(
    study: Any, config: Config, number: int, settings: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    with needs("search"):
        from optuna.trial import TrialState

    shown = ", ".join(
        f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}"
        for key, value in settings.items()
    )
    loss = _loss(config, settings)
    if loss is None:
        study.tell(number, state=TrialState.FAIL)
        say(f"trial {number}: failed; {shown}")
        return
    study.tell(number, loss)
    say(f"trial {number}: validation loss {loss:.4f}; {shown}")


def _loss(config: Config, settings: Mapping[str, Any]) -> float | None:
    """The mean validation loss of a trial's runs; None if one of them has none."""
    store, halving = RunStore(config.out), Halving(config.out, config.sweep.halving)
    losses = []
    for name in _runs(config, settings):
        result = read_run(store.folder(name)).result
        losses.append(result.value("validation", "loss") if result else halving.last(name))
    if not losses or any(loss is None or not math.isfinite(loss) for loss in losses):
        return None
    return sum(losses) / len(losses)


def _trials(study: Any, config: Config, dimensions: int) -> list[Trial]:
    trials = [
        Trial(trial.number, trial.params, trial.value, tuple(_runs(config, trial.params)))
        for trial in _whole(study, dimensions)
    ]
    return sorted(trials, key=lambda trial: math.inf if trial.loss is None else trial.loss)
