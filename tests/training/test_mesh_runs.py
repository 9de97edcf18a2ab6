"""Whole runs on a mesh of eight devices: the loop, its scores, checkpoints from and to a mesh."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_families import write_encoder, write_t5
from tiny_language import write_completions, write_tiny_model

from lora_jax.config import (
    Config,
    MeshConfig,
    canonical,
    config_hash,
    from_config_dict,
    with_value,
)
from lora_jax.core import hosts
from lora_jax.sweeps.side_by_side import predicted
from lora_jax.tasks.opening import LastTask
from lora_jax.training import programs, slots
from lora_jax.training.loop import fit, train
from lora_jax.training.programs import programs_for
from lora_jax.training.result import RunResult
from lora_jax.training.run import Run
from lora_jax.training.sharing import differences, widest

ALONE = MeshConfig()


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_tiny_model(folder / "decoder")
    write_t5(folder / "t5")
    write_encoder(folder / "roberta", "roberta")
    write_completions(folder / "a.jsonl", 64)
    words = ["fine", "great", "warm", "dull", "weak", "cold", "grim", "bright"]
    rows = [f"{one} {two} {n // 64},{n % 2}" for n, one in enumerate(words * 16) for two in words]
    (folder / "a.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return folder


def config_of(where: Path, model: str, **changes: Any) -> Config:
    language = dict(name=str(where / "a.jsonl"), task="completion", text="input", label="ideal")
    texts = dict(name=str(where / "a.csv"))
    data = texts if model == "roberta" else language
    settings = dict(
        model=dict(name=str(where / model)),
        data=dict(data, max_length=24),
        method="qlora",
        quant=dict(format="nf4", block_size=8),
        lora=dict(rank=2),
        optim=dict(learning_rate=0.002),
        train=dict(
            total_steps=4, batch_size=10, eval_batch_size=10, log_every=1, checkpoint_every=2
        ),
    )
    return from_config_dict(settings | changes)


def on(config: Config, **mesh: Any) -> Config:
    return dataclasses.replace(config, mesh=MeshConfig(**mesh))


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def check_equal(one: Path, other: Path, first: RunResult, second: RunResult) -> None:
    assert len(losses(one)) == 4
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)
    assert second.value("test", "loss") == pytest.approx(first.value("test", "loss"), rel=1e-5)
    said = [(path / "predictions" / "test.jsonl") for path in (one, other)]
    assert said[0].exists() == said[1].exists()
    if said[0].exists():
        assert len(said[0].read_text().splitlines()) == len(said[1].read_text().splitlines())


def test_checkpoints_of_a_mesh_go_on_on_one_device_and_the_other_way(
    where: Path, tmp_path: Path
) -> None:
    config = config_of(where, "decoder")
    mesh = on(config, fsdp=8)
    one, eight = tmp_path / "one", tmp_path / "eight"
    first, second = train(config, one, quiet=True), train(mesh, eight, quiet=True)
    check_equal(one, eight, first, second)
    # What a dry run says is of one device, and of the program that has trained.
    needs = [predicted(LastTask(), run, 1) for run in (config, mesh)]
    assert needs[0].base_bytes == first.base_bytes == second.base_bytes > 3 * needs[1].base_bytes
    assert second.peak_bytes == needs[1].peak_bytes < needs[0].peak_bytes

    for now, folder, result in ((config, eight, first), (mesh, one, second)):
        shutil.rmtree(folder / "checkpoints" / "4")
        again = train(now, folder, quiet=True)  # from step 2
        assert again.value("test", "loss") == pytest.approx(result.value("test", "loss"), rel=1e-5)
    check_equal(one, eight, first, second)


@pytest.mark.parametrize(
    ("model", "mesh", "changes"),
    [
        ("roberta", dict(data=2, fsdp=2, model=2), {}),
        pytest.param(
            "roberta", dict(fsdp=8), dict(method="full", quant={}), marks=pytest.mark.slow
        ),
        pytest.param(
            "roberta", dict(data=8), dict(method="bottleneck", quant={}), marks=pytest.mark.slow
        ),
        pytest.param("t5", dict(data=2, fsdp=2, model=2), {}, marks=pytest.mark.long),
        pytest.param("t5", dict(fsdp=8), dict(method="lora", quant={}), marks=pytest.mark.slow),
    ],
)
def test_a_run_on_a_mesh_is_that_of_one_device(
    where: Path, tmp_path: Path, model: str, mesh: dict[str, int], changes: dict[str, Any]
) -> None:
    config = config_of(where, model, **changes)
    runs = ((tmp_path / "one", config), (tmp_path / "mesh", on(config, **mesh)))
    first, second = (train(run, folder, quiet=True) for folder, run in runs)
    check_equal(tmp_path / "one", tmp_path / "mesh", first, second)


@pytest.mark.long  # Each compiles six programs for eight devices.
@pytest.mark.parametrize("lanes", [1, 2])
def test_runs_side_by_side_on_a_mesh_are_what_each_is_alone_there(
    where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    """One adapter after the other, as on a CPU, and both at once, as on an accelerator."""
    monkeypatch.setattr(programs, "lanes_for", lambda slots: min(slots, lanes))
    monkeypatch.setattr(slots, "lanes_for", lambda slots: min(slots, lanes))
    first = on(config_of(where, "decoder"), data=2, fsdp=2, model=2)
    second = with_value(with_value(first, "lora.rank", 1), "optim.learning_rate", 0.01)
    runs, found = {"a": first, "b": second}, {}
    for name, config in runs.items():
        found[name] = train(config, tmp_path / "alone" / name, quiet=True)
    every = [Run(config, tmp_path / "both" / name) for name, config in runs.items()]
    made: dict[str, Any] = {}
    give = lambda run, result: made.update({run.folder.name: result})
    fit(every, give, slots=2, wide=widest([first, second]))
    for name in runs:
        assert isinstance(made[name], RunResult), made[name]
        assert made[name].stacked == 2
        folders = tmp_path / "alone" / name, tmp_path / "both" / name
        check_equal(*folders, found[name], made[name])
    # Both are planned as the program that trains.
    planned = predicted(LastTask(), widest([first, second]), 2)
    assert planned.peak_bytes is not None


def test_a_mesh_is_no_part_of_a_runs_name_and_of_what_it_is_refused_with(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(where, "decoder")
    mesh = on(config, fsdp=8)
    assert config_hash(mesh) == config_hash(config)
    assert not [key for key in canonical(mesh) if key.startswith("mesh")]
    assert differences(mesh, mesh) == () and differences(mesh, config) == ("mesh.fsdp: 8, 1",)
    per_example = LastTask().of(config).per_example
    monkeypatch.setattr(hosts, "count", lambda: 2)
    assert differences(mesh, mesh) == ("processes: a run of several is trained alone",)
    with pytest.raises(ValueError, match="Runs of several processes are trained one by one"):
        programs_for(per_example, mesh, 4, slots=2)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="config.optim.offload is for one device"):
        from_config_dict(dict(optim=dict(offload=True), mesh=dict(fsdp=2)))
    with pytest.raises(ValueError, match="config.mesh.fsdp must be 1 or more"):
        from_config_dict(dict(mesh=dict(fsdp=0)))
    with pytest.raises(ValueError, match="config.mesh.rules must be 'PATTERN: VALUE"):
        from_config_dict(dict(mesh=dict(fsdp=2, rules="head/kernel: fsdp")))
    with pytest.raises(ValueError, match="sharding rule 'dense/kernel' matches none of"):
        train(on(config, fsdp=8, rules="dense/kernel: fsdp -"), where / "no", quiet=True)
    with pytest.raises(ValueError, match="needs 64 devices, and jax sees .* Lower config.mesh, or"):
        train(on(config, data=8, fsdp=8), where / "no", quiet=True)
