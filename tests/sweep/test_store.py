"""The result store survives kills, other launchers, full disks and half-written files."""

import json
import os
import subprocess
import sys

import pytest

from lora_jax.config import Config
from lora_jax.sweep import store as store_module
from lora_jax.sweep.lock import Lock, RunLocked
from lora_jax.sweep.store import RunStore, StoreError, write_json

ENVIRONMENT = {"git": {"commit": None}}


def test_a_run_goes_from_pending_to_done_and_is_not_started_again(tmp_path):
    store = RunStore(tmp_path)
    assert store.status("a") == "pending"
    store.start("a", Config(), ENVIRONMENT)
    assert store.status("a") == "running"
    store.finish("a", {"test_accuracy": 0.5})
    assert store.status("a") == "done" and store.runs()[0].result == {"test_accuracy": 0.5}
    with pytest.raises(ValueError, match="done and is not run again"):
        store.start("a", Config(), ENVIRONMENT)


def test_a_failed_run_keeps_its_error_and_traceback_and_may_start_again(tmp_path):
    store = RunStore(tmp_path)
    store.start("a", Config(), ENVIRONMENT)
    store.fail("a", RuntimeError("the reason"))
    assert store.status("a") == "failed"
    assert store.runs()[0].error == "RuntimeError: the reason" and "the reason" in (tmp_path / "a" / "log.txt").read_text()
    store.start("a", Config(), ENVIRONMENT)
    assert store.status("a") == "running"
    store.release("a")
    assert store.status("a") == "interrupted"


def test_a_live_process_keeps_its_run_and_a_killed_one_gives_it_up(tmp_path):
    code = (
        "import sys, time; from lora_jax.sweep.store import RunStore; from lora_jax.config import Config\n"
        "RunStore(sys.argv[1]).start('a', Config(), {}); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
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


def test_the_lock_of_another_host_is_never_taken(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    with pytest.raises(RunLocked, match="elsewhere"):
        Lock(tmp_path / "lock").acquire()


def test_damaged_files_make_a_failed_run_and_spare_the_others(tmp_path):
    store = RunStore(tmp_path)
    for name in ("a", "b"):
        store.start(name, Config(), ENVIRONMENT)
        store.finish(name, {"test_accuracy": 0.5})
    (tmp_path / "a" / "result.json").write_text('{"test_accur')
    first, second = store.runs()
    assert first.status == "failed" and "cannot be read" in first.error
    assert second.status == "done"


def test_a_half_written_line_of_metrics_is_counted_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    metrics = store_module.read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in metrics.rows] == [1, 2] and metrics.ignored == 1


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
