"""Each cell of a tuned sweep is scored at its own best value, under seeds that it was not chosen by,
and an interrupted sweep comes to the same runs.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_sweep import fill, trainer, with_loss

from lora_jax import cli
from lora_jax.config import from_config_dict, load_config, to_dict
from lora_jax.sweeps import plan as planning
from lora_jax.sweeps.grid import cell_id, expand, run_id
from lora_jax.sweeps.runner import run_sweep
from lora_jax.sweeps.store import RunStore, StoreError
from lora_jax.sweeps.tuned import FILE, Curve, read_curves
from lora_jax.sweeps.tuning import first_points, first_round, size, tune
from lora_jax.training.sharing import groups

CONFIG = Path(__file__).parents[2] / "configs" / "default.py"
RATE = "optim.learning_rate"


def config_of(**sweep):
    made = {"rank": (1, 4), "seeds": (0, 1, 2), "tune": {"factors": (0.5, 1, 2)}} | sweep
    return from_config_dict({"method": "lora", "sweep": made})


def tuned(config, train):
    return tune(config, train, say=lambda text: None)


@pytest.mark.parametrize(
    ("losses", "best", "edge", "beyond"),
    [
        ({0.5: 0.3, 1.0: 0.2, 2.0: 0.4}, 1.0, "", None),
        ({0.5: 0.1, 1.0: 0.2, 2.0: 0.4}, 0.5, "lowest", 0.25),
        ({0.5: 0.3, 1.0: 0.2, 3.0: 0.1}, 3.0, "highest", 9.0),
        # One that diverged loses, and is a neighbour all the same.
        ({0.5: 0.3, 1.0: 0.2, 2.0: None}, 1.0, "", None),
        ({0.5: 0.2, 1.0: 0.2, 2.0: None}, 0.5, "lowest", 0.25),
        ({0.5: None, 1.0: None}, None, "", None),
    ],
)
def test_the_best_has_the_lowest_loss_and_at_an_edge_the_grid_grows(losses, best, edge, beyond):
    curve = Curve(RATE, losses=losses)
    assert (curve.best, curve.edge, curve.beyond) == (best, edge, beyond)


@pytest.mark.parametrize(
    ("setting", "losses", "beyond"),
    [
        ("lora.dropout", {0.4: 0.3, 0.8: 0.2}, None),  # 1.6 is no share
        ("lora.rank", {4: 0.3, 6: 0.2}, 9),
        ("lora.rank", {1: 0.1, 2: 0.2}, None),  # half a rank is none
        (RATE, {0.003: 0.2, 0.01: 0.1}, 0.0333333),
    ],
)
def test_a_grid_grows_to_values_that_the_setting_may_have(setting, losses, beyond):
    assert Curve(setting, losses=losses).beyond == beyond


def test_every_cell_is_scored_at_its_own_best_under_fresh_seeds(tmp_path):
    """Rank 1 is best inside of its grid, rank 4 four times above it; the rate of `full` is its own,
    and its highest diverges.
    """
    config = config_of(baselines=("full",), learning_rate={"full": 1e-4})
    config, rounds = replace(config, out=str(tmp_path)), []
    best = {("lora", 1): 1e-3, ("lora", 4): 4e-3}
    train = trainer(
        lambda run: best.get((run.method, run.lora.rank), 1e-4),
        lambda run: run.method == "full" and run.optim.learning_rate == 2e-4,
        rounds,
    )
    outcome, curves = tuned(config, train)
    by_best = {curve.best: (curve.values, curve.edge) for curve in curves.values()}
    assert by_best == {
        1e-4: ([5e-5, 1e-4, 2e-4], ""),
        1e-3: ([5e-4, 1e-3, 2e-3], ""),
        4e-3: ([5e-4, 1e-3, 2e-3, 4e-3, 8e-3], ""),
    }
    assert [*map(len, rounds)] == [18, 2, 2, 9] and outcome.failed == ()
    assert size(config) == (18 + 9, 18 + 9 + 3 * 2 * 2)

    runs = {run.run_id: run for run in RunStore(tmp_path).runs()}
    for curve in curves.values():
        scored = [runs[name].config for name in curve.scored]
        assert [one["train"]["seed"] for one in scored] == [0, 1, 2]
        assert {one["optim"]["learning_rate"] for one in scored} == {curve.best}
        aside = set(curve.tried) - set(curve.scored)
        assert {runs[name].config["train"]["seed"] for name in aside} == {101, 102}
    assert read_curves(tmp_path) == {
        cell: replace(curve, tried=(*curve.tried, *curve.scored)) for cell, curve in curves.items()
    }
    assert tuned(config, train)[1] == curves


@pytest.mark.parametrize("stops_in", [1, 2, 3])
def test_a_tuned_sweep_that_was_stopped_comes_to_the_same_rounds(stops_in, tmp_path):
    best = lambda run: 8e-3 if run.lora.rank == 4 else 1e-3
    config = config_of(tune={"factors": (0.5, 1, 2), "grow": 1, "seeds": (7,)})
    whole, again = ([], [])
    straight = tuned(replace(config, out=str(tmp_path / "a")), trainer(best, asked=whole))

    stopping, config = trainer(best), replace(config, out=str(tmp_path / "b"))

    def stops(round_, runs=None, **how):
        if len(again) == stops_in - 1:
            fill(
                RunStore(round_.out), (runs or expand(round_))[:1], lambda run: with_loss(run, best)
            )
            raise KeyboardInterrupt
        again.append(round_)
        return stopping(round_, runs, **how)

    with pytest.raises(KeyboardInterrupt):
        tuned(config, stops)
    goes_on = []
    assert tuned(config, trainer(best, asked=goes_on))[1] == straight[1]
    assert goes_on == whole and [*map(len, whole)] == [6, 1, 6]
    assert {curve.edge for curve in straight[1].values()} == {"", "highest"}


def test_a_tuned_sweep_that_was_killed_in_a_run_of_tuning_ends_with_the_numbers_of_one_that_was_not(
    tiny, tmp_path, capsys
):
    grid = {
        "rank": "2", "format": "()", "targets": "query+value", "baselines": "()", "seeds": "0", "learning_rate.lora": "None",
        "tune.factors": "1,4", "tune.grow": "0", "tune.seeds": "7",
    }  # fmt: skip
    values = {**tiny, **{f"config.sweep.{key}": value for key, value in grid.items()}}
    values |= {"config.train.total_steps": "4", "config.train.checkpoint_every": "2"}

    def words(name):
        return [
            f"{key}={value}" for key, value in (values | {"config.out": tmp_path / name}).items()
        ]

    def train(round_, runs=None, **how):
        return run_sweep(round_, runs=runs, quiet=True, say=lambda text: None, **how)

    def stops(round_, runs, **how):
        train(round_, runs[:1], **how)
        raise KeyboardInterrupt

    outcome, curves = tuned(load_config(str(CONFIG), words("a")), train)
    with pytest.raises(KeyboardInterrupt):
        tuned(load_config(str(CONFIG), words("b")), stops)
    command = ["sweep", "--config", str(CONFIG), *(f"--{word}" for word in words("b")), "--quiet"]
    assert cli.main(command) == 0
    assert "2 runs trained, 1 kept from before, 0 failed" in capsys.readouterr().err
    assert read_curves(tmp_path / "b") == read_curves(tmp_path / "a")
    scores = [
        {run.run_id: run.result.scores for run in RunStore(tmp_path / name).runs()} for name in "ab"
    ]
    assert len(outcome.done) == 3 and scores[0].keys() == {*outcome.done} and scores[0] == scores[1]
    (curve,) = curves.values()
    assert {name for name, found in scores[0].items() if "test" in found} == {*curve.scored}
    report = (tmp_path / "b" / "report" / "report.md").read_text()
    assert f"| {curve.best:g} (" in report and "2 of these to tune by" in report

    # Asked for as results, the runs of tuning are scored on the test split, and not trained again.
    store, plain = RunStore(tmp_path / "a"), first_round(load_config(str(CONFIG), words("a")))
    trained = {name: store.metrics(name) for name in curve.tried}
    assert [one.done for one in planning.plan(plain)] == [(False, False)]
    assert {*train(plain).done} == {*curve.tried} and len(train(plain).kept) == 2
    for name, rows in trained.items():
        before, *_ = [row for row in rows if row["split"] == "validation"]
        last = store.metrics(name)
        assert [row for row in last if row["split"] == "train"] == rows[: len(last) - 2]
        assert [row["split"] for row in last[-2:]] == ["validation", "test"]
        assert last[-2]["loss"] == before["loss"]
    assert all(run.result.is_tested for run in store.runs())


def test_a_round_in_which_few_cells_grow_has_the_programs_of_all(tmp_path):
    config = replace(config_of(), out=str(tmp_path))
    widest, fills = [], trainer(lambda run: 1.0 if run.lora.rank == 1 else 1e-3)

    def train(round_, runs=None, **how):
        widest.extend(wide.lora.rank for wide, _ in groups(expand(round_)))
        return fills(round_, runs, **how)

    tuned(config, train)
    assert widest == [4, 4, 4, 4]


def test_a_cell_that_diverges_at_every_value_is_not_scored_and_its_runs_have_failed(tmp_path):
    config = replace(config_of(), out=str(tmp_path))
    outcome, curves = tuned(config, trainer(lambda run: 1e-3, lambda run: run.lora.rank == 1))
    assert len(outcome.failed) == 6 and len(outcome.done) == 9
    assert sorted(map(str, (curve.best for curve in curves.values()))) == ["0.001", "None"]


def test_what_a_method_does_not_read_is_not_tuned_for_it(tmp_path):
    made = {"factors": (0.5, 1, 2), "setting": "lora.alpha"}
    config = replace(config_of(baselines=("head",), tune=made), out=str(tmp_path))
    points = first_points(config)
    assert sorted(points.values()) == [(), (8.0, 16.0, 32.0), (8.0, 16.0, 32.0)]
    assert {run.method for run in expand(first_round(config))} == {"lora"}
    outcome, curves = tuned(config, trainer(lambda run: 1e-3))
    assert len(curves) == 2 and sum(name.startswith("head") for name in outcome.done) == 3


def test_rounds_are_settings_as_any_and_old_runs_keep_their_ids():
    config = config_of()
    round_ = first_round(config)
    assert from_config_dict(to_dict(round_)) == round_
    plain = replace(config, sweep=replace(config.sweep, tune=type(config.sweep.tune)()))
    assert [run_id(run) for run in expand(round_)][2] != [run_id(run) for run in expand(plain)][0]
    assert run_id(config) == run_id(replace(config, sweep=type(config.sweep)()))
    # A cell is what its runs have in common, whatever the base that it is tuned around.
    (one, *_), (other, *_) = (
        [cell_id(run, RATE) for run in expand(made)]
        for made in (plain, replace(plain, optim=replace(plain.optim, learning_rate=0.1)))
    )
    assert one == other
    with pytest.raises(ValueError, match="known round by round"):
        expand(config)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"tune": {"factors": (2, 1)}}, "two or more that increase"),
        ({"tune": {"factors": (1, 2), "seeds": (2, 3)}}, "seeds that are not scored"),
        ({"halving": {"rungs": (2,)}}, "would stop cells"),
        ({"search": {"trials": 2, "space": ("lora.rank = 1, 2",)}}, "asks for every setting"),
        ({"axes": ("optim.learning_rate = 1e-3, 2e-3",)}, "is an axis of this sweep"),
        ({"tune": {"factors": (1, 2), "setting": "lora.rank"}}, "is an axis of this sweep"),
        ({"tune": {"factors": (1, 2), "setting": "lora.rnk"}}, "Nearest: lora.rank"),
        ({"tune": {"factors": (1, 2), "setting": "data.max_length"}}, "do not compare"),
        ({"tune": {"factors": (1, 2), "setting": "optim.schedule"}}, "around a number above 0"),
        ({"tune": {"factors": (1, 2), "setting": "baseline.size"}}, "no run of this sweep reads"),
        ({"tune": {"factors": (1, 1.1), "setting": "train.accumulate"}}, "Spread the factors"),
    ],
)
def test_a_tuning_that_cannot_be_fair_is_refused(more, says):
    with pytest.raises((ValueError, KeyError), match=re.escape(says)):
        first_points(config_of(**more))


def test_a_damaged_file_is_an_error_and_not_a_sweep_without_tuning(tmp_path):
    (tmp_path / FILE).write_text('{"cells": {"a": {"values": ["x"]}}}')
    with pytest.raises(StoreError, match="Delete it and run the same sweep again"):
        read_curves(tmp_path)
