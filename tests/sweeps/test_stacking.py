"""Sweeps side by side: the store holds what one run after another leaves in it, and halving leaves
survivors as they are alone.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lora_jax.config import load_config
from lora_jax.sweeps import runner
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.plan import plan, plan_table
from lora_jax.sweeps.side_by_side import predicted
from lora_jax.sweeps.store import RunStore
from lora_jax.tasks.opening import LastTask
from lora_jax.training.sharing import widest

CONFIG = Path(__file__).parents[2] / "configs" / "default.py"


def sweep_of(tiny, out, **more):
    grid = {
        "sweep.rank": "1,2",
        "sweep.format": "none,nf4",
        "sweep.targets": "query+value",
        "sweep.baselines": "head",
    }
    values = {
        **tiny,
        **{f"config.{key}": value for key, value in (grid | {"out": str(out)} | more).items()},
    }
    return load_config(str(CONFIG), [f"{key}={value}" for key, value in values.items()])


def run(config):
    return runner.run_sweep(config, quiet=True, say=lambda text: None)


@pytest.fixture(scope="module")
def both(tiny, tmp_path_factory):
    """The same sweep one by one and side by side."""
    folder = tmp_path_factory.mktemp("stacking")
    configs = (
        sweep_of(tiny, folder / "alone"),
        sweep_of(tiny, folder / "together", **{"sweep.stack": "2"}),
    )
    return configs, [run(config) for config in configs]


def losses(root, name):
    return [row["loss"] for row in RunStore(root).metrics(name)]


def test_a_sweep_side_by_side_leaves_the_results_of_one_run_after_another(both):
    (alone, together), (one, two) = both
    assert set(one.done) == set(two.done) and len(two.done) == 5 and two.failed == ()
    stores = RunStore(alone.out), RunStore(together.out)
    for first, second in zip(stores[0].runs(), stores[1].runs(), strict=True):
        assert first.run_id == second.run_id and first.config == {
            **second.config,
            "out": first.config["out"],
        }
        same = ("test_accuracy", "trainable_parameters", "base_bytes", "adapter_bytes", "steps")
        assert all(first.result.row()[key] == second.result.row()[key] for key in same)
        # Sums in another order, over four steps.
        assert losses(alone.out, first.run_id) == pytest.approx(
            losses(together.out, first.run_id), rel=1e-5
        )
        files = [
            sorted(path.name for path in record.folder.iterdir()) for record in (first, second)
        ]
        assert files[0] == files[1]
        assert second.result.stacked == (None if second.config["method"] == "head" else 2)
        # A run's share of a stack's memory is near what it takes alone; the loop over adapters
        # holds copies of their states, which are a large part of a model of some kilobytes.
        assert (
            first.result.peak_bytes * 0.8 < second.result.peak_bytes < first.result.peak_bytes * 1.5
        )


def test_finished_runs_of_a_stack_are_kept_and_one_that_is_missing_is_trained_alone(
    both, tiny, tmp_path
):
    (_, together), _ = both
    assert len(run(together).kept) == 5
    wider = replace(
        together,
        sweep=replace(together.sweep, rank=(1, 2, 3), format=("none",), targets=("query+value",)),
    )
    outcome = run(wider)
    assert len(outcome.done) == 1 and len(outcome.kept) == 3


def test_a_run_that_another_process_holds_and_one_that_fails_leave_the_others_alone(tiny, tmp_path):
    config = sweep_of(
        tiny,
        tmp_path,
        **{
            "sweep.rank": "20,1,2,3",
            "sweep.format": "none",
            "sweep.targets": "query+value",
            "sweep.stack": "4",
        },
    )
    held = next(made for made in expand(config) if made.lora.rank == 2)
    other = RunStore(tmp_path)
    other.start(run_id(held), held, {})
    outcome = run(config)
    assert (
        outcome.elsewhere == (run_id(held),) and len(outcome.done) == 3 and len(outcome.failed) == 1
    )
    other.release(run_id(held))
    (failed,) = [record for record in other.runs() if record.status == "failed"]
    assert "Rank 20 is larger than the smaller side" in failed.error


def test_the_plan_of_a_stack_predicts_its_memory_and_says_what_keeps_runs_apart(
    both, tiny, tmp_path
):
    (_, together), _ = both
    groups = plan(replace(together, out=str(tmp_path)), compiled=True)
    assert [(len(group.pack.runs), group.pack.slots) for group in groups] == [
        (1, 1),
        (2, 2),
        (2, 2),
    ]
    for group in groups[1:]:
        needs = group.needs
        assert needs.peak_bytes > needs.base_bytes + needs.trained_bytes and group.seconds > 0
    assert groups[2].pack.why == ("method: lora, qlora", "quant.format: none, nf4")
    table = plan_table(groups)
    assert "quant.format: none, nf4" in table.caption and "training takes about" in table.title
    # Runs that are done give the time of those that are not.
    measured = plan(together)
    assert all(group.seconds == 0 for group in measured)


def test_halving_stops_the_worse_runs_and_leaves_the_survivors_as_they_are_alone(tiny, tmp_path):
    axes = "'optim.learning_rate = 1e-3, 10, 3e-3, 20'"
    grid = {
        "sweep.rank": "2",
        "sweep.format": "none",
        "sweep.targets": "mlp",
        "sweep.baselines": "()",
        "sweep.axes": axes,
    }
    grid |= {
        "sweep.halving.rungs": "2",
        "sweep.halving.factor": "2",
        "sweep.stack": "2",
        "sweep.learning_rate.lora": "None",
    }
    config = sweep_of(tiny, tmp_path / "halved", **grid)
    outcome = run(config)
    assert sorted([*outcome.done, *outcome.stopped]) == sorted(
        run_id(made) for made in expand(config)
    )
    scores = list(
        json.loads((tmp_path / "halved" / "halving.json").read_text())["scores"]["2"].items()
    )
    better = [
        sum(other < loss for _, other in scores[:place]) for place, (_, loss) in enumerate(scores)
    ]
    # Of n runs at the rung so far, half, rounded up, go on.
    expected = {
        name
        for (name, _), above, place in zip(scores, better, range(4), strict=True)
        if above >= -(-(place + 1) // 2)
    }
    assert set(outcome.stopped) == expected and expected
    store = RunStore(config.out)
    assert {store.status(name) for name in outcome.stopped} == {"interrupted"}
    alone = replace(
        config,
        out=str(tmp_path / "alone"),
        sweep=replace(config.sweep, halving=type(config.sweep.halving)(), stack=1),
    )
    run(alone)
    for name in outcome.done:
        assert losses(config.out, name) == pytest.approx(losses(alone.out, name), rel=1e-5)
    again = run(config)
    assert (
        again.done == ()
        and sorted(again.kept) == sorted(outcome.done)
        and sorted(again.stopped) == sorted(outcome.stopped)
    )
    # Without halving, what was stopped goes on.
    finished = run(
        replace(config, sweep=replace(config.sweep, halving=type(config.sweep.halving)()))
    )
    assert sorted(finished.done) == sorted(outcome.stopped)
    assert json.loads((tmp_path / "halved" / "halving.json").read_text())["stopped"].keys() == set(
        outcome.stopped
    )


def test_the_peak_of_a_stack_grows_with_its_slots(tiny, tmp_path):
    config = sweep_of(tiny, tmp_path)
    wide = widest([made for made in expand(config) if made.quant.format == "nf4"])
    tasks = LastTask()
    two, four = predicted(tasks, wide, 2), predicted(tasks, wide, 4)
    assert four.trained_bytes == 2 * two.trained_bytes and four.base_bytes == two.base_bytes
    assert four.peak_bytes - two.peak_bytes >= (four.trained_bytes - two.trained_bytes)
