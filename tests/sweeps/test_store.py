"""The result store survives kills, other launchers, full disks and half-written files."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lora_jax.config import Config
from lora_jax.sweeps import store as store_module
from lora_jax.sweeps.files import read_lines
from lora_jax.sweeps.leases import MOST_ATTEMPTS, Leases
from lora_jax.sweeps.lock import RunLocked
from lora_jax.sweeps.records import read_run
from lora_jax.sweeps.store import RunConflict, RunStore, StoreError, StoreVersionError, write_json
from lora_jax.training.result import RunResult

ENVIRONMENT = {"git": {"commit": None}}


def test_a_run_goes_from_pending_to_done_and_is_not_started_again(tmp_path):
    store = RunStore(tmp_path)
    assert store.status("a") == "pending"
    store.start("a", Config(), ENVIRONMENT)
    assert store.status("a") == "running"
    store.finish("a", RunResult.from_json({"test_accuracy": 0.5}))
    assert store.status("a") == "done" and store.runs()[0].result.value("test") == 0.5
    with pytest.raises(ValueError, match="done and is not run again"):
        store.start("a", Config(), ENVIRONMENT)


def test_a_run_is_recorded_to_be_of_what_was_read(tmp_path):
    """Its names were fetched, or written anew, after it was claimed."""
    store = RunStore(tmp_path)
    store.start("a", Config(), ENVIRONMENT | {"contents": {"x.csv": "old"}})
    read = {"x.csv": "new", "org/model": "fetched"}
    store.finish("a", RunResult.from_json({"test_accuracy": 0.5}), read)
    assert store.runs()[0].environment == ENVIRONMENT | {"contents": read}
    assert read_run(tmp_path / "a").environment == ENVIRONMENT | {"contents": read}


def test_a_run_is_not_done_before_its_result_is_on_the_disk(tmp_path, monkeypatch):
    store, real = RunStore(tmp_path), store_module.write_json
    store.start("a", Config(), ENVIRONMENT)

    def refuses(path, value):
        if path.name == "result.json":
            raise StoreError("full")
        real(path, value)

    monkeypatch.setattr(store_module, "write_json", refuses)
    with pytest.raises(StoreError, match="full"):
        store.finish("a", RunResult.from_json({"test_accuracy": 0.5}))
    assert store.status("a") == "running"
    store.release("a")


def test_a_failed_run_keeps_its_error_and_traceback_and_may_start_again(tmp_path):
    store = RunStore(tmp_path)
    store.start("a", Config(), ENVIRONMENT)
    store.fail("a", RuntimeError("the reason"))
    assert store.status("a") == "failed"
    assert (
        store.runs()[0].error == "RuntimeError: the reason"
        and "the reason" in (tmp_path / "a" / "log.txt").read_text()
    )
    store.start("a", Config(), ENVIRONMENT)
    assert store.status("a") == "running"
    store.release("a")
    assert store.status("a") == "interrupted"


def test_a_live_process_keeps_its_run_and_a_killed_one_gives_it_up(tmp_path):
    code = (
        "import sys, time; from lora_jax.sweeps.store import RunStore; from lora_jax.config import "
        "Config\n"
        "RunStore(sys.argv[1]).start('a', Config(), {}); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        store = RunStore(tmp_path)
        assert store.status("a") == "running"
        with pytest.raises(RunLocked, match=str(other.pid)):
            store.start("a", Config(), ENVIRONMENT)
        other.kill()
        other.wait()
        assert store.status("a") == "interrupted"
        store.start("a", Config(), ENVIRONMENT)
        assert store.status("a") == "running"


def test_damaged_files_make_a_failed_run_and_spare_the_others(tmp_path):
    store = RunStore(tmp_path)
    for name in ("a", "b"):
        store.start(name, Config(), ENVIRONMENT)
        store.finish(name, RunResult.from_json({"test_accuracy": 0.5}))
    (tmp_path / "a" / "result.json").write_text('{"test_accur')
    first, second = store.runs()
    assert first.status == "failed" and "cannot be read" in first.error
    assert second.status == "done"


def test_a_half_written_line_of_metrics_is_counted_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    rows, ignored = read_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and ignored == 1


def test_a_full_disk_is_one_paragraph_and_keeps_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"No space left on device.*--config.out"):
        write_json(tmp_path / "a.json", {"new": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_store_where_a_file_stands_is_one_paragraph(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="must be able to write"):
        RunStore(tmp_path / "file").start("a", Config(), ENVIRONMENT)


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".hidden"])
def test_run_ids_are_plain_names(tmp_path, name):
    with pytest.raises(ValueError, match="run id"):
        RunStore(tmp_path).folder(name)


def test_one_id_with_other_content_is_refused_and_what_is_there_is_kept(tmp_path):
    store, run = RunStore(tmp_path), Config()
    store.start("a", run, ENVIRONMENT)
    store.finish("a", RunResult.from_json({"test_accuracy": 0.5}))
    other = replace(run, lora=replace(run.lora, rank=3))
    with pytest.raises(RunConflict, match="lora.rank is 8 there and 3 here"):
        store.start("a", other, ENVIRONMENT)
    store.check_content(
        "a", replace(run, out="elsewhere", train=replace(run.train, log_every=7))
    )  # no other numbers
    said: list[str] = []
    leases = Leases(store, ENVIRONMENT, said.append)
    assert leases.claim("a", other, "a run") is None
    assert leases.failed == ["a"] and "other content" in said[0]
    assert store.runs()[0].result.value("test") == 0.5


def test_a_run_written_by_a_version_with_other_settings_is_named_and_kept(tmp_path):
    store = RunStore(tmp_path)
    store.start("a", {"magic": 1}, {"versions": {"lora_jax": "9.9"}})
    store.finish("a", RunResult.from_json({"test_accuracy": 0.5}))
    with pytest.raises(RunConflict, match=r"cannot read.*config.magic.*lora_jax 9.9"):
        store.check_content("a", Config())
    assert store.status("a") == "done"


def test_a_store_of_another_layout_is_refused_whole(tmp_path):
    RunStore(tmp_path).write_plan(["a"])
    assert json.loads((tmp_path / "store.json").read_text())["format"] == store_module.FORMAT
    (tmp_path / "store.json").write_text('{"format": 99, "lora_jax": "7.0"}')
    for use in (
        lambda store: store.runs(),
        lambda store: store.planned(),
        lambda store: store.start("a", Config(), {}),
    ):
        with pytest.raises(
            StoreVersionError, match=r"layout 99, written by lora_jax 7.0.*reads layouts 1 to 3"
        ):
            use(RunStore(tmp_path))
    (tmp_path / "store.json").write_text('{"form')
    with pytest.raises(StoreVersionError, match="cannot be read"):
        RunStore(tmp_path).runs()


def test_a_store_from_before_layouts_had_numbers_is_read_and_gone_on_with(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    write_json(folder / "config.json", Config())
    write_json(folder / "status.json", {"status": "done", "error": None, "updated": 1.0})
    write_json(folder / "result.json", {"test_accuracy": 0.5})
    assert [run.status for run in RunStore(tmp_path).runs()] == ["done"]
    RunStore(tmp_path).write_plan(["a"])
    assert [run.status for run in RunStore(tmp_path).runs()] == ["done"]


def test_a_full_disk_in_mid_run_fails_that_run_on_the_disk_and_the_rest_in_words(
    tmp_path, monkeypatch
):
    """The disk is as full as its ballast: what is written besides does not fit."""
    store, said = RunStore(tmp_path), []
    leases = Leases(store, ENVIRONMENT, said.append)
    store.start("finished", Config(), ENVIRONMENT)
    store.finish("finished", RunResult.from_json({"test_accuracy": 0.5}))
    folder = leases.claim("broken", Config(), "broken")
    real = os.fsync

    def full(descriptor: int) -> None:
        if (folder / ".ballast").exists():
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError):
        store.finish("broken", RunResult.from_json({"test_accuracy": 0.6}))
    leases.fail("broken", StoreError("No space left on device"), "broken")
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    assert leases.claim("next", Config(), "next") is None
    assert leases.failed == ["broken", "next"] and "No space left" in said[-1]
    monkeypatch.undo()
    assert {run.run_id: run.status for run in store.runs()} == {
        "broken": "failed",
        "finished": "done",
    }
    assert "No space left" in next(run.error for run in store.runs() if run.run_id == "broken")


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/proc/filesystems").exists(),
    reason="mounting a small disk needs root on Linux",
)
def test_a_disk_that_is_really_full_keeps_finished_runs_and_records_the_failure(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("this container may not mount")
    try:
        store, said = RunStore(disk / "runs"), []
        leases = Leases(store, ENVIRONMENT, said.append)
        store.start("finished", Config(), ENVIRONMENT)
        store.finish("finished", RunResult.from_json({"test_accuracy": 0.5}))
        folder = leases.claim("broken", Config(), "broken")
        with (
            pytest.raises(OSError, match="No space left"),
            (folder / "metrics.jsonl").open("ab", buffering=0) as metrics,
        ):
            while True:
                metrics.write(b"x" * 1024)
        leases.fail("broken", OSError(28, "No space left on device"), "broken")
        assert leases.claim("next", Config(), "next") is None
        assert leases.failed == ["broken", "next"]
        assert {run.run_id: run.status for run in store.runs()} == {
            "broken": "failed",
            "finished": "done",
        }
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_run_that_kills_its_process_again_and_again_counts_as_failed(tmp_path):
    code = (
        "import os, sys; from lora_jax.sweeps.store import RunStore; from lora_jax.config import "
        "Config\n"
        "store = RunStore(sys.argv[1]); store.start('a', Config(), {})\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    store, said = RunStore(tmp_path), []
    assert store.status("a") == "interrupted" and store.state("a").attempts == 1
    left = {"status": "running", "error": None, "updated": 1.0, "attempts": MOST_ATTEMPTS}
    write_json(tmp_path / "a" / "status.json", left)  # as the third process leaves it
    leases = Leases(store, ENVIRONMENT, said.append)
    assert leases.claim("a", Config(), "a run") is None
    assert (
        store.status("a") == "failed"
        and "3 processes in a row were killed" in store.runs()[0].error
    )
    # Who starts the sweep anew wants it tried anew; a launcher of the same start does not.
    assert Leases(store, ENVIRONMENT, said.append, since=0.0).claim("a", Config(), "a run") is None
    assert Leases(store, ENVIRONMENT, said.append).claim("a", Config(), "a run") is not None
    store.release("a")


def test_a_checkpoint_forgives_the_deaths_before_it(tmp_path):
    store, said = RunStore(tmp_path), []
    store.start("a", Config(), ENVIRONMENT)
    store.release("a")
    left = {"status": "running", "error": None, "updated": 1.0, "attempts": MOST_ATTEMPTS - 1}
    write_json(tmp_path / "a" / "status.json", left)
    leases = Leases(store, ENVIRONMENT, said.append)
    assert leases.claim("a", Config(), "a run") is not None
    assert store.state("a").attempts == MOST_ATTEMPTS
    store.progressed("a")
    assert store.state("a").attempts == 1 and store.status("a") == "running"
    store.release("a")


def test_a_run_whose_folder_was_removed_has_failed(tmp_path):
    store, said = RunStore(tmp_path), []
    leases = Leases(store, ENVIRONMENT, said.append)
    for name in ("a", "b"):
        assert leases.claim(name, Config(), name) is not None
        shutil.rmtree(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="a was removed while the run was trained"):
        store.progressed("a")
    leases.finish("b", RunResult.from_json({"test_accuracy": 0.1}), "done")
    assert leases.failed == ["b"] and "was removed" in said[-1] and leases.done == []
    assert store.status("b") == "pending"


def test_a_run_stopped_on_purpose_is_no_death(tmp_path):
    store = RunStore(tmp_path)
    for _ in range(5):
        store.start("a", Config(), ENVIRONMENT)
        assert store.state("a").attempts == 1
        store.release("a")
    assert store.status("a") == "interrupted"


def test_a_run_that_another_machine_took_over_is_not_finished_twice(tmp_path):
    store = RunStore(tmp_path)
    store.start("a", Config(), ENVIRONMENT)
    (tmp_path / "a" / "lock").write_text(
        json.dumps({"host": "elsewhere", "pid": 1, "started": "1", "heartbeat": 20})
    )
    with pytest.raises(RunLocked, match="taken over"):
        store.finish("a", RunResult.from_json({"test_accuracy": 0.1}))
    assert not (tmp_path / "a" / "result.json").exists()


def test_launchers_that_plan_at_once_lose_no_plan(tmp_path):
    code = "import sys; from lora_jax.sweeps.store import RunStore\nfor n in range(20): RunStore(sys.argv[1]).write_plan([f'{sys.argv[2]}{n}'])"
    launchers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in ("a", "b")
    ]
    assert [launcher.wait() for launcher in launchers] == [0, 0]
    assert sorted(RunStore(tmp_path).planned()) == sorted(
        f"{name}{n}" for name in "ab" for n in range(20)
    )


def test_a_run_of_edited_data_is_not_the_run_in_the_store(tmp_path):
    """Nor is it gone on with; one that has learnt nothing yet starts on the new data."""
    data = tmp_path / "a.csv"
    data.write_text("text,label\na,0\n")
    config = replace(Config(), data=replace(Config().data, name=str(data)))
    store, said = RunStore(tmp_path / "runs"), []

    def claim(name):
        return Leases(store, ENVIRONMENT, said.append).claim(name, config, name)

    for name in ("done", "begun", "failed"):
        assert claim(name) is not None
    assert set(read_run(store.folder("done")).environment["contents"]) == {"minilm-l6", str(data)}
    store.finish("done", RunResult.from_json({"test_accuracy": 0.5}))
    (store.folder("begun") / "checkpoints" / "2").mkdir(parents=True)
    store.release("begun")
    store.fail("failed", ValueError("row 2 has no label"))
    assert Leases(store, ENVIRONMENT, said.append).is_over("done", config, "done")
    assert said[-1] == "done: done before, kept"

    data.write_text("text,label\na,1\n")
    for name in ("done", "begun"):
        assert claim(name) is None
        assert f"what it was made of has changed since: {data}" in said[-1]
    assert claim("failed") is not None
    assert read_run(store.folder("done")).result.value("test") == 0.5
