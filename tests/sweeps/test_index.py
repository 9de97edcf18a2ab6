"""The index lists what the folders hold, whatever happens to either, and costs nothing when it is
lost.
"""

import json
import shutil

import pytest

from lora_jax.config import Config
from lora_jax.sweeps import files, index
from lora_jax.sweeps.store import RunStore
from lora_jax.training.result import RunResult

ENVIRONMENT = {"versions": {"jax": "1"}, "git": {"commit": None}}


@pytest.fixture
def store(tmp_path):
    """Two done runs, one that failed, and one that runs."""
    store = RunStore(tmp_path)
    for name in ("a", "b", "c", "d"):
        store.start(name, Config(), ENVIRONMENT)
    store.finish("a", RunResult.from_json({"test_accuracy": 0.5}))
    store.finish("b", RunResult.from_json({"test_accuracy": 0.6}))
    store.fail("c", ValueError("no"))
    yield store
    store.release("d")


def seen(store):
    return [
        (run.run_id, run.status, run.error, run.result, run.environment) for run in store.runs()
    ]


EXPECTED = [
    ("a", "done", None, RunResult.from_json({"test_accuracy": 0.5}), ENVIRONMENT),
    ("b", "done", None, RunResult.from_json({"test_accuracy": 0.6}), ENVIRONMENT),
    ("c", "failed", "ValueError: no", None, ENVIRONMENT),
    ("d", "running", None, None, ENVIRONMENT),
]


def test_final_runs_come_from_the_index_and_equal_their_folders(store, monkeypatch):
    read, real = [], index.read_run
    monkeypatch.setattr(index, "read_run", lambda folder: read.append(folder.name) or real(folder))
    assert seen(store) == EXPECTED
    assert read == ["d"]


def test_a_lost_index_is_made_again_by_reading(store, tmp_path):
    (tmp_path / "index.jsonl").unlink()
    assert seen(store) == EXPECTED
    assert (
        len((tmp_path / "index.jsonl").read_text().splitlines()) == 4
    )  # the environment once, three final runs
    assert seen(store) == EXPECTED


def test_rebuild_writes_the_index_anew(store, tmp_path):
    (tmp_path / "index.jsonl").write_text("rubbish\n")
    assert store.rebuild_index() == 4
    assert seen(store) == EXPECTED
    assert all(json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines())


@pytest.mark.parametrize("cut", [10, 200])
def test_a_half_written_line_costs_only_a_look_into_the_folder(store, tmp_path, cut):
    text = (tmp_path / "index.jsonl").read_text()
    (tmp_path / "index.jsonl").write_text(text[:-cut])
    assert seen(store) == EXPECTED
    index.note(tmp_path, "d", "running")
    assert json.loads((tmp_path / "index.jsonl").read_text().splitlines()[-1])["run_id"] == "d"
    assert seen(store) == EXPECTED


def test_files_that_changed_after_the_index_count_not_the_index(store, tmp_path):
    files.write_json(tmp_path / "a" / "result.json", {"test_accuracy": 0.75})
    (tmp_path / "b" / "result.json").write_text('{"test_accur')
    shutil.rmtree(tmp_path / "c")
    first, second, third = store.runs()
    assert first.result.value("test") == 0.75
    assert second.status == "failed" and "cannot be read" in second.error
    assert third.run_id == "d"


def test_a_failed_run_that_starts_again_is_running(store):
    store.start("c", Config(), ENVIRONMENT)
    assert [run.status for run in store.runs()] == ["done", "done", "running", "running"]
    store.release("c")
    assert [run.status for run in store.runs()] == ["done", "done", "interrupted", "running"]
    assert [line["status"] for line in store.history() if line["run_id"] == "c"] == [
        "running",
        "failed",
        "running",
        "interrupted",
    ]


def test_a_copied_store_reads_the_same(store, tmp_path, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "store"
    shutil.copytree(
        tmp_path, copy, copy_function=shutil.copyfile
    )  # new times: the index does not count
    assert seen(RunStore(copy))[:3] == EXPECTED[:3]
