"""A search asks for legal settings, trains them as runs of the store, and goes on where it
stopped.
"""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from lora_jax.commands.sweep import trials_table
from lora_jax.config import UnknownKeyError, load_config
from lora_jax.sweeps.grid import expand
from lora_jax.sweeps.lock import Lock, RunLocked
from lora_jax.sweeps.runner import Outcome, run_sweep
from lora_jax.sweeps.search import Trial, open_study, read_dimension, read_space, search
from lora_jax.sweeps.store import RunStore

CONFIG = Path(__file__).parents[2] / "configs" / "default.py"
RATE = {"sweep.search.space": "('optim.learning_rate = log 1e-3 .. 1e-1',)"}
SPACE = "'optim.learning_rate = log 1e-3 .. 1e-1', 'lora.rank = log 1 .. 8', 'lora.targets = query+value, all-linear'"


def config_of(tiny, out, **more):
    grid = {
        "sweep.rank": "()",
        "sweep.format": "()",
        "sweep.targets": "()",
        "sweep.baselines": "()",
        "sweep.learning_rate.lora": "None",
    }
    grid |= {
        "sweep.search.trials": "3",
        "sweep.search.space": f"({SPACE})",
        "train.total_steps": "4",
        "out": str(out),
    } | more
    values = {**tiny, **{f"config.{key}": value for key, value in grid.items()}}
    return load_config(str(CONFIG), [f"{key}={value}" for key, value in values.items()])


def train(config):
    return run_sweep(config, quiet=True, say=lambda text: None)


def quiet_search(config, train=train, batch=2):
    return search(config, train, batch=batch, say=lambda text: None)


def test_a_search_trains_its_trials_and_orders_them_by_validation_loss(tiny, tmp_path):
    outcome, trials = quiet_search(
        config_of(tiny, tmp_path, **{"sweep.stack": "2", "sweep.seeds": "0,1"})
    )
    assert (
        [len(trial.runs) for trial in trials] == [2] * 3
        and len(outcome.done) == 6
        and outcome.failed == ()
    )
    results = {run.run_id: run for run in RunStore(tmp_path).runs()}
    for trial in trials:
        losses = [results[run].result.value("validation", "loss") for run in trial.runs]
        assert trial.loss == pytest.approx(sum(losses) / 2, rel=1e-12)
        assert (
            results[trial.runs[0]].config["optim"]["learning_rate"]
            == trial.settings["optim.learning_rate"]
        )
        assert (
            results[trial.runs[1]].config["lora"]["rank"] == trial.settings["lora.rank"]
            and 1 <= trial.settings["lora.rank"] <= 8
        )
    assert [trial.loss for trial in trials] == sorted(trial.loss for trial in trials)
    assert len({trial.settings["optim.learning_rate"] for trial in trials}) == 3


def test_a_search_that_was_stopped_trains_first_what_it_had_asked(tiny, tmp_path):
    asked = []

    def stops(config):
        asked.append(config.sweep.axes)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return train(config)

    config = config_of(tiny, tmp_path, **RATE)
    with pytest.raises(KeyboardInterrupt):
        quiet_search(config, stops, batch=1)
    outcome, trials = quiet_search(
        config, lambda config: asked.append(config.sweep.axes) or train(config), batch=1
    )
    assert asked[2] == asked[1] and len(asked) == 4
    assert sorted(trial.number for trial in trials) == [0, 1, 2] and all(
        trial.loss is not None for trial in trials
    )
    assert len(outcome.done) == 2 and quiet_search(config)[1] == trials
    with pytest.raises(ValueError, match="another space"):
        quiet_search(config_of(tiny, tmp_path, **{"sweep.search.space": "('lora.rank = 1, 2',)"}))

    # From before settings were recorded: what the trials trained says it.
    longer = config_of(tiny, tmp_path, **RATE, **{"train.total_steps": "9"})
    open_study(tmp_path).set_user_attr("config", None)
    with pytest.raises(ValueError, match="trial 0 has no run with the settings of now"):
        quiet_search(longer)
    assert quiet_search(config)[1] == trials
    # Runs of all seeds of now may be there, and the loss be the mean over more of them.
    study = open_study(tmp_path)
    study.set_user_attr("config", None)
    run = RunStore(tmp_path).folder(trials[0].runs[0]) / "result.json"
    told = run.read_text()
    loss = str(trials[0].loss)
    assert loss in told
    run.write_text(told.replace(loss, "9.0"))
    with pytest.raises(ValueError, match="the loss of trial . is not that of its runs of now"):
        quiet_search(config)


def test_a_short_batch_that_was_interrupted_is_joined_by_no_trial(tiny, tmp_path):
    sizes = []

    def stops(config):
        sizes.append(len(expand(config)))
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return Outcome((), (), (), ())

    more = {"sweep.search.trials": "3"} | RATE
    with pytest.raises(KeyboardInterrupt):
        quiet_search(config_of(tiny, tmp_path, **more), stops)
    quiet_search(config_of(tiny, tmp_path, **more | {"sweep.search.trials": "6"}), stops)
    assert sizes == [2, 1, 1, 2, 1]


def test_two_processes_never_go_on_with_one_search(tiny, tmp_path):
    other = Lock(tmp_path / "search.lock")
    other.acquire()
    with pytest.raises(RunLocked, match="Another process goes on with the search in"):
        quiet_search(config_of(tiny, tmp_path, **RATE), lambda config: pytest.fail("trained"))
    other.release()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"train.total_steps": "9"}, "train.total_steps is 4 there and 9 here"),
        ({"optim.weight_decay": "0.5"}, "optim.weight_decay is 0.01 there and 0.5 here"),
        ({"sweep.seeds": "0,1"}, "the seeds are (0,) there and (0, 1) here"),
        ({"sweep.halving.rungs": "2"}, "config.sweep.halving"),
        ({}, "what {data} stands for"),
    ],
)
def test_a_search_goes_on_with_its_own_settings_alone(more, says, tiny, tmp_path):
    """Else it reported the losses of the first settings under the ids of runs that are not there."""

    def again(**more):
        nothing = Outcome((), (), (), ())
        config = config_of(
            {**tiny, "config.data.name": str(data)}, tmp_path / "runs", **RATE | more
        )
        return quiet_search(config, lambda config: nothing)[1]

    data = tmp_path / "reviews.csv"
    data.write_text(Path(tiny["config.data.name"]).read_text())
    trials = again()
    harmless = {"train.log_every": "3", "sweep.search.trials": "4", "sweep.stack": "2"}
    assert again(**harmless)[: len(trials)] == trials
    data.write_text("text,label\nfilm,0\n" if not more else data.read_text())
    with pytest.raises(ValueError, match=re.escape(says.format(data=data))):
        again(**more)


def test_a_trial_whose_run_failed_is_recorded_and_the_search_goes_on(tiny, tmp_path):
    nothing = Outcome((), (), (), ())
    _, trials = quiet_search(
        config_of(tiny, tmp_path, **RATE, **{"sweep.search.trials": "2"}),
        lambda config: nothing,
        batch=1,
    )
    assert [trial.loss for trial in trials] == [None, None]


def test_a_trial_that_was_halved_away_tells_the_loss_that_it_had(tiny, tmp_path):
    more = {
        "sweep.halving.rungs": "2",
        "sweep.halving.factor": "2",
        "sweep.search.trials": "3",
    } | RATE
    outcome, trials = quiet_search(config_of(tiny, tmp_path, **more), batch=3)
    assert outcome.stopped and len(outcome.done) + len(outcome.stopped) == 3
    assert all(trial.loss is not None for trial in trials)


def test_the_best_trials_are_shown_with_names_as_they_are():
    """Brackets in a regex of targets are no markup."""
    trials = [
        Trial(
            2, {"optim.learning_rate": 0.0123456, "lora.targets": "layers/[qv]/[/]"}, 0.5, ("a",)
        ),
        Trial(0, {"optim.learning_rate": 0.1, "lora.targets": "query+value"}, None, ("b", "c")),
    ]
    screen = Console(file=io.StringIO(), width=120)
    screen.print(trials_table(trials))
    shown = screen.file.getvalue()
    for text in ("best of 2 trials", "0.01235", "layers/[qv]/[/]", "failed", "b, c", "0.5000"):
        assert text in shown


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        ("lora.rank", ValueError, "a line reads"),
        ("lora.rnk = 1, 2", UnknownKeyError, "lora.rank"),
        ("sweep.stack = 1, 2", ValueError, "no axis of a sweep"),
        ("lora.rank = 8 .. 1", ValueError, "a range grows"),
        ("optim.weight_decay = log 0.0 .. 1.0", ValueError, "begins above 0"),
        ("lora.targets = a .. b", ValueError, "is no number"),
        ("lora.rank = 1.5 .. 4", TypeError, "lora.rank"),
    ],
)
def test_a_line_that_spells_no_dimension_is_an_error(line, error, says):
    with pytest.raises(error, match=re.escape(says)):
        read_dimension(line)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sweep.rank": "1,2"}, "move config.sweep.rank into"),
        ({"sweep.axes": "('lora.alpha = 1, 2',)"}, "move config.sweep.axes into"),
        ({"sweep.search.space": "('lora.rank = 1, 2', 'lora.rank = 4, 8')"}, "stands in two lines"),
        ({"sweep.search.space": "()"}, "needs a space"),
        ({"sweep.search.space": "('data.name = a, b',)"}, "differ in 'data.name' do not compare"),
    ],
)
def test_a_search_and_a_grid_at_once_are_an_error(tiny, tmp_path, settings, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        read_space(config_of(tiny, tmp_path, **settings))


def test_a_space_without_trials_is_an_error(tiny, tmp_path):
    with pytest.raises(ValueError, match="number of trials"):
        config_of(tiny, tmp_path, **{"sweep.search.trials": "0"})
