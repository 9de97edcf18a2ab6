"""Rungs of a sweep: the best share goes on, decisions are kept, other settings are refused."""

import json
import math
from dataclasses import replace

import pytest

from lora_jax.config import HalvingConfig, from_config_dict
from lora_jax.sweeps.halving import FILE, Halving, ground
from lora_jax.sweeps.store import StoreError

TWO = HalvingConfig(rungs=(2, 4), factor=2)


def test_a_run_goes_on_if_it_is_among_the_best_share_of_those_before_it(tmp_path):
    halving = Halving(tmp_path, TWO)
    decided = [
        halving.keep(name, 2, loss)
        for name, loss in (("a", 0.5), ("b", 0.6), ("c", 0.4), ("d", 0.45), ("e", math.nan))
    ]
    # Of 1: it. Of 2 the best: a. Of 3 the best two: c and a. Of 4 the best two: c and d. A loss
    # that is not finite is the worst.
    assert decided == [True, False, True, True, False]
    assert halving.stopped == {"b": 2, "e": 2}
    assert halving.keep("c", 4, 0.3) and not halving.keep("d", 4, 0.31)
    assert (halving.last("c"), halving.last("b"), halving.last("z")) == (0.3, 0.6, None)
    # A share that is no whole number is rounded up: the second of three goes on.
    assert halving.keep("x", 4, 0.305) and not halving.keep("y", 4, 0.306)


def test_a_run_within_the_margin_of_the_last_that_goes_on_goes_on(tmp_path):
    halving = Halving(tmp_path, replace(TWO, margin=0.0625))
    losses = (("a", 0.5), ("b", 0.5625), ("c", 0.626), ("d", 0.25), ("e", math.inf))
    # The last that goes on: of 2 a, of 3 b, of 4 a, of 5 and 6 b, of 7 f.
    assert [halving.keep(name, 2, loss) for name, loss in losses] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert halving.keep("f", 2, 0.625) and not halving.keep("g", 2, 0.688)
    with pytest.raises(ValueError, match="was halved with .*'margin': 0.0625"):
        Halving(tmp_path, TWO)


def test_decisions_are_kept_over_a_restart_and_not_made_twice(tmp_path):
    first = Halving(tmp_path, TWO)
    first.keep("a", 2, 0.5), first.keep("b", 2, math.inf)
    again = Halving(tmp_path, TWO)
    assert again.stopped == {"b": 2}
    assert again.keep("a", 2, 99.0) and not again.keep("b", 2, 0.0)
    assert json.loads((tmp_path / FILE).read_text())["scores"] == {"2": {"a": 0.5, "b": None}}


def test_other_rungs_in_one_folder_and_a_damaged_file_are_refused(tmp_path):
    Halving(tmp_path, TWO).keep("a", 2, 0.5)
    with pytest.raises(ValueError, match="was halved with .*Use the same, another folder"):
        Halving(tmp_path, HalvingConfig(rungs=(3,), factor=2))
    (tmp_path / FILE).write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Halving(tmp_path, TWO)


def test_data_that_change_in_the_midst_of_a_sweep_are_judged_by_no_rung_of_before(tmp_path):
    halving = Halving(tmp_path, TWO, {"train.total_steps": 8})
    halving.check_contents({"a.csv": "1"})
    halving.check_contents({"a.csv": "1", "org/model": "fetched now"})
    halving.keep("a", 2, 0.5)
    for one in (halving, Halving(tmp_path, TWO, {"train.total_steps": 8})):
        with pytest.raises(ValueError, match="the content of a.csv was '1' and is '2'"):
            one.check_contents({"a.csv": "2"})
    Halving(tmp_path, HalvingConfig()).check_contents({"a.csv": "2"})


def sweep_of(data, axes=(), **train):
    changed = {"data": {"name": str(data)}, "train": train, "lora": {"rank": 2}}
    return from_config_dict(changed | {"sweep": {"axes": axes}})


def test_losses_of_other_data_or_another_training_stop_no_run(tmp_path):
    data = tmp_path / "a.csv"
    data.write_text("text,label\na,0\n")
    Halving(tmp_path, TWO, ground(sweep_of(data, total_steps=8))).keep("a", 2, 0.5)

    # What a sweep compares may differ, as may what changes no number.
    wider = sweep_of(data, ("lora.rank = 1, 4", "train.batch_size = 8, 16"), total_steps=8, seed=3)
    assert Halving(tmp_path, TWO, ground(wider)).last("a") == 0.5
    with pytest.raises(ValueError, match="train.total_steps was 8 and is 9"):
        Halving(tmp_path, TWO, ground(sweep_of(data, total_steps=9)))
    data.write_text("text,label\na,1\n")
    with pytest.raises(ValueError, match="the content of .*a.csv was"):
        Halving(tmp_path, TWO, ground(sweep_of(data, total_steps=8)))

    kept = json.loads((tmp_path / FILE).read_text())
    del kept["under"]  # as an older version wrote it
    (tmp_path / FILE).write_text(json.dumps(kept))
    assert Halving(tmp_path, TWO, ground(sweep_of(data, total_steps=9))).last("a") == 0.5

    unlike = sweep_of(data, (f"data.name = {data}, {tmp_path}/b.csv",), total_steps=8)
    with pytest.raises(ValueError, match="runs that differ in 'data.name' do not compare"):
        ground(replace(unlike, sweep=replace(unlike.sweep, halving=TWO)))


@pytest.mark.parametrize("values", [{"rungs": (4, 2)}, {"rungs": (0,)}, {"factor": 1}])
def test_rungs_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match="config.sweep.halving"):
        from_config_dict({"sweep": {"halving": values}})
