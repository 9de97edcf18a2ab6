"""Sweeps share compiled programs, keep finished runs, record failed ones, and stop and go on."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from lora_jax.config import Config, load_config
from lora_jax.sweeps import plan as planning
from lora_jax.sweeps import runner
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.runner import describe_runs
from lora_jax.sweeps.store import RunStore
from lora_jax.tasks.opening import LastTask
from lora_jax.training import programs
from lora_jax.training.interrupted import Interrupted
from lora_jax.training.sharing import groups

CONFIG = Path(__file__).parents[2] / "configs" / "default.py"


def tiny_sweep(tiny: dict[str, str], out: Path, **more: str):
    sweep = {
        "config.sweep.rank": "1,2",
        "config.sweep.format": "none,nf4",
        "config.sweep.targets": "query+value,all-linear",
    }
    values = {**tiny, **sweep, "config.sweep.baselines": "head", "config.out": str(out), **more}
    return load_config(str(CONFIG), [f"{key}={value}" for key, value in values.items()])


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A sweep, its outcome, and how many programs it compiled for training."""
    programs.forget_programs()
    config = tiny_sweep(tiny, tmp_path_factory.mktemp("sweep"))
    outcome = runner.run_sweep(config, quiet=True, say=lambda text: None)
    return config, outcome


def test_every_run_is_done_and_its_result_has_the_figures_of_a_report(finished):
    config, outcome = finished
    assert outcome.failed == () and len(outcome.done) == 9
    for record in RunStore(config.out).runs():
        assert record.status == "done"
        assert 0 <= record.result.value("test") <= 1 and record.result.trainable_parameters > 0
        assert (record.folder / "adapter" / "adapter.safetensors").is_file()


def test_runs_of_one_format_share_one_group_of_programs(finished):
    config, _ = finished
    found = groups(expand(config))
    assert [len(members) for _, members in found] == [1, 4, 4]
    wide = found[1][0]
    assert wide.lora.rank == 2
    # The first run of a group compiles, the others find everything compiled.
    store = RunStore(config.out)
    seconds = {record.run_id: record.result.compile_seconds for record in store.runs()}
    for _, members in found:
        first, *others = [seconds[run_id(run)] for run in members]
        assert first > 0 and all(other == 0 for other in others)
    # And has its shapes: a narrow run says by how much its adapter was padded.
    results = {record.run_id: record.result for record in store.runs()}
    for wide, members in found[1:]:
        ours = {run: results[run_id(run)] for run in members}
        assert len({one.adapter_bytes + one.padded_bytes for one in ours.values()}) == 1
        for run, one in ours.items():
            is_narrow = run.lora.rank < wide.lora.rank or run.lora.targets != "all-linear"
            assert (one.padded_bytes > 0) == is_narrow
    assert results[run_id(found[0][1][0])].padded_bytes == 0


def test_a_run_inside_a_group_equals_the_run_alone(finished, tmp_path):
    config, _ = finished
    run = next(
        run
        for run in expand(config)
        if run.lora.rank == 1 and run.lora.targets == "query+value" and run.quant.format == "nf4"
    )
    runner.run_sweep(replace(run, out=str(tmp_path)), quiet=True, say=lambda text: None)

    def losses(root: str | Path) -> list[float]:
        return [
            row["loss"] for row in RunStore(root).metrics(run_id(run)) if row["split"] == "train"
        ]

    grouped, alone = losses(config.out), losses(tmp_path)
    # Zero columns are added to sums in another order: a few units in the last place of float32.
    assert grouped == pytest.approx(alone, rel=2e-6)
    counts = [
        json.loads((Path(root) / run_id(run) / "result.json").read_text())["trainable_parameters"]
        for root in (config.out, tmp_path)
    ]
    assert counts[0] == counts[1]


def test_finished_runs_are_kept(finished, monkeypatch):
    config, _ = finished
    monkeypatch.setattr(
        runner, "fit", lambda *args, **kwargs: pytest.fail("a finished run was trained again")
    )
    outcome = runner.run_sweep(config, quiet=True, say=lambda text: None)
    assert len(outcome.kept) == 9 and outcome.done == ()


def test_a_failing_run_is_recorded_and_the_rest_goes_on(tiny, tmp_path):
    # Rank 20 is more than the smaller side of a 16 x 16 weight.
    config = tiny_sweep(
        tiny,
        tmp_path,
        **{
            "config.sweep.rank": "20,1",
            "config.sweep.format": "none",
            "config.sweep.targets": "query+value",
        },
    )
    said: list[str] = []
    outcome = runner.run_sweep(config, quiet=True, say=said.append)
    assert len(outcome.failed) == 1 and len(outcome.done) == 2
    record = next(record for record in RunStore(tmp_path).runs() if record.status == "failed")
    assert "Rank 20 is larger than the smaller side" in record.error
    assert any("failed: " in line for line in said)


def test_the_plan_predicts_the_bytes_that_runs_measure(finished, tmp_path):
    config, _ = finished
    groups = planning.plan(replace(config, out=str(tmp_path)), compiled=True)
    store = RunStore(config.out)
    for group in groups:
        names, needs = set(map(run_id, group.pack.runs)), group.needs
        records = [record for record in store.runs() if record.run_id in names]
        assert {record.result.base_bytes for record in records} == {needs.base_bytes}
        assert needs.peak_bytes is not None and needs.peak_bytes > needs.base_bytes
        # The plan takes the longest bucket, a run the largest of the shapes that it met.
        assert max(record.result.peak_bytes for record in records) == needs.peak_bytes
    assert not any(done for group in groups for done in group.done)
    assert all(done for group in planning.plan(config) for done in group.done)
    assert planning.plan_table(groups).row_count == 9


def test_a_signal_at_a_runs_end_stops_the_whole_sweep(tiny, tmp_path, monkeypatch):
    config = tiny_sweep(tiny, tmp_path, **{"config.sweep.format": "none"})
    finish = RunStore.finish

    def finish_and_ask(self: RunStore, *args: object) -> None:
        finish(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunStore, "finish", finish_and_ask)
    with pytest.raises(Interrupted, match="Stopped between two runs"):
        runner.run_sweep(config, quiet=True, say=lambda text: None)
    statuses = [record.status for record in RunStore(tmp_path).runs()]
    assert statuses == ["done"]


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_while_a_task_is_opened_leaves_the_run_interrupted(
    tiny, tmp_path, monkeypatch, signals
):
    config = tiny_sweep(tiny, tmp_path, **{"config.sweep.format": "none"})
    opened = LastTask.of

    def ask(self: LastTask, run: object) -> object:
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
        return opened(self, run)

    monkeypatch.setattr(LastTask, "of", ask)
    with pytest.raises(Interrupted if signals == 1 else KeyboardInterrupt):
        runner.run_sweep(config, quiet=True, say=lambda text: None)
    (record,) = RunStore(tmp_path).runs()
    assert record.status == "interrupted" and record.error is None


def test_a_line_a_run_says_in_what_it_differs():
    """Three runs of another learning rate were three equal lines."""
    run = Config()
    rates = [replace(run, optim=replace(run.optim, learning_rate=rate)) for rate in (0.1, 0.01)]
    assert [*describe_runs([*rates, replace(run, method="head")]).values()] == [
        "fp32, rank 8, all-linear, learning_rate=0.1, seed 0",
        "fp32, rank 8, all-linear, learning_rate=0.01, seed 0",
        "head, learning_rate=0.001, seed 0",
    ]
    assert [*describe_runs([run]).values()] == ["fp32, rank 8, all-linear, seed 0"]
