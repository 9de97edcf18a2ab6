"""A store that an older version wrote is found, renamed once, and goes on.

tests/golden/store_layout_2.json holds the JSON files of a store that `run_sweep` of c3174b2 wrote:
head, bottleneck, lora and qlora at two seeds each, a run of a recipe, one that failed and one that
was stopped.
"""

import json
import shutil
from pathlib import Path

import pytest

from lora_jax.config import Config, from_config_dict
from lora_jax.sweeps.cells import cells_of, gather
from lora_jax.sweeps.files import StoreError
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.leases import Leases
from lora_jax.sweeps.lock import Lock
from lora_jax.sweeps.renaming import NAMES, rename_runs
from lora_jax.sweeps.store import FORMAT, RunStore
from lora_jax.training.saved import load_run

GOLDEN = Path(__file__).parents[1] / "golden" / "store_layout_2.json"
HEADS = ("head-s0-9ab467f0", "head-s1-467bbcaa")


@pytest.fixture
def old(tmp_path) -> Path:
    root = tmp_path / "runs"
    for name, content in json.loads(GOLDEN.read_text()).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    return root


def sweep_of(root: Path) -> Config:
    """The sweep that wrote the golden store, as it is written today."""
    config = json.loads((root / HEADS[0] / "config.json").read_text())
    sweep = {"format": ["none", "nf4"], "seeds": [0, 1], "baselines": ["head", "bottleneck"]}
    rates = {"learning_rate": {"head": 0.05}}
    optim = {**config["optim"], "learning_rate": 0.01}
    method = {"method": "lora", "optim": optim, "sweep": sweep | rates, "out": str(root)}
    return from_config_dict(config | method)


def status_of(store: RunStore) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in store.runs():
        found.setdefault(record.status, []).append(record.run_id)
    return found


def test_an_old_store_is_read_under_its_old_names(old):
    store = RunStore(old)
    assert {status: len(names) for status, names in status_of(store).items()} == {
        "done": 9, "failed": 1, "interrupted": 1,
    }  # fmt: skip
    assert set(HEADS) < {record.run_id for record in store.runs()}
    records, planned = gather([old])
    assert len(cells_of(records)) == 5 and planned == []
    assert json.loads((old / "store.json").read_text())["format"] == 2


def test_a_sweep_finds_its_old_runs_once_they_are_renamed(old, capsys):
    before = {record.run_id: record for record in RunStore(old).runs()}
    store, runs = RunStore(old), expand(sweep_of(old))
    store.write_plan([run_id(run) for run in runs])

    said = capsys.readouterr().err
    assert "Its 11 runs have new names" in said and NAMES in said
    assert json.loads((old / "store.json").read_text())["format"] == FORMAT
    leases = Leases(store, {}, print)
    assert all(leases.is_over(run_id(run), run, "a run") for run in runs)
    assert len(leases.kept) == 8 and leases.failed == []

    names = json.loads((old / NAMES).read_text())
    assert set(names) == set(before) and not any((old / name).exists() for name in names)
    for record in store.runs():
        assert record.run_id == run_id(from_config_dict(record.config))
        (was,) = [name for name, new in names.items() if new == record.run_id]
        assert (record.status, record.result) == (before[was].status, before[was].result)
    # Nine were planned, the recipe's run with them, and none of them is still to come.
    records, waiting = gather([old])
    assert len(store.planned()) == 9 and len(records) == 11 and waiting == []
    assert len(cells_of(records)) == 5

    RunStore(old).write_plan([])
    assert capsys.readouterr().err == ""


def test_what_names_a_run_inside_the_store_is_renamed_too(old):
    stopped = "qlora-int8-r2-query_value-s2-e483d55c"
    meta = old / stopped / "checkpoints" / "2" / "meta" / "metadata"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"identity": {"base": "b", "run": "e483d55c"}, "data": {"n": 2}}))
    halving = {"settings": {"factor": 3}, "scores": {"2": {stopped: 0.5}}, "stopped": {stopped: 2}}
    (old / "halving.json").write_text(json.dumps(halving))

    new = rename_runs(old)[stopped]
    moved = json.loads((old / new / "checkpoints" / "2" / "meta" / "metadata").read_text())
    assert moved == {"identity": {"base": "b", "run": new[-8:]}, "data": {"n": 2}}
    halved = json.loads((old / "halving.json").read_text())
    assert halved["scores"] == {"2": {new: 0.5}} and halved["stopped"] == {new: 2}


def test_a_kill_between_two_folders_costs_nothing(old, monkeypatch):
    """Killed after each number of renamed folders, and gone on with."""
    wanted = None
    for moves in (0, 1, 5, 11):
        root = old.with_name(f"killed_{moves}")
        shutil.copytree(old, root)
        left, move = iter(range(moves)), Path.rename

        def counted(path, target, left=left, move=move):
            if path.is_dir() and next(left, None) is None:
                raise KeyboardInterrupt
            return move(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", counted)
            if moves < 11:
                with pytest.raises(KeyboardInterrupt):
                    RunStore(root).write_plan([])
        RunStore(root).write_plan([])
        names = {record.run_id for record in RunStore(root).runs()}
        wanted = wanted or (names, RunStore(root).planned())
        assert (names, RunStore(root).planned()) == wanted
        assert len(json.loads((root / NAMES).read_text())) == 11


def test_a_store_that_somebody_works_in_is_left_alone(old):
    lock = Lock(old / HEADS[0] / "lock")
    lock.acquire()
    with pytest.raises(StoreError, match=f"a process is at work in {HEADS[0]}"):
        RunStore(old).write_plan([])
    assert (old / HEADS[1]).is_dir() and not (old / NAMES).exists()
    lock.release()
    RunStore(old).write_plan([])
    assert not (old / HEADS[1]).exists()


def test_runs_that_cannot_be_named_or_would_be_two_keep_their_names(old):
    (old / HEADS[0] / "config.json").write_text('{"magic": 1}')
    shutil.copytree(old / HEADS[1], old / "head-s1-00000000")
    shutil.copytree(old / HEADS[1], old / "mine")
    names = rename_runs(old)
    assert HEADS[0] not in names and "mine" not in names
    assert len({"head-s1-00000000", HEADS[1]} & set(names)) == 1
    assert len(RunStore(old).runs()) == 13


def test_a_path_from_before_leads_to_the_run(old):
    """It has no adapter, which is what the error is about."""
    rename_runs(old)
    new = json.loads((old / NAMES).read_text())[HEADS[0]]
    environment = old / new / "environment.json"
    content = json.loads(environment.read_text()) | {"contents": {__file__: "0" * 16}}
    environment.write_text(json.dumps(content))
    config = json.loads((old / new / "config.json").read_text())
    config["data"]["name"] = __file__
    (old / new / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=f"{new} was trained on other content of .*test_renaming.py"
    ):
        load_run(old / HEADS[0])
