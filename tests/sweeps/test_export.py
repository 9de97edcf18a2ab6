"""Exports hold every run and every logged step, and read back as they were."""

import csv
import json

import pytest

from lora_jax import cli
from lora_jax.config import Config
from lora_jax.sweeps.export import export_runs
from lora_jax.sweeps.store import RunStore
from lora_jax.training.result import RunResult


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = RunStore(tmp_path_factory.mktemp("store"))
    for name, peak in (("a", 1), ("b", None)):
        folder = store.start(name, Config(), {"versions": {"jax": "0.10"}, "device": {"count": 1}})
        (folder / "metrics.jsonl").write_text(
            '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n{"st'
        )
        store.finish(
            name,
            RunResult.from_json(
                {"test_accuracy": 0.5, "peak_bytes": peak, "examples": {"test": 10}}
            ),
        )
    store.start("c", Config(), {})
    store.fail("c", ValueError('no, "never"\nagain'))
    return store


def read(path):
    if path.suffix == ".csv":
        with path.open() as file:
            return list(csv.DictReader(file))
    return (
        pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
        .read_table(path)
        .to_pylist()
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_row_a_run_with_result_config_and_environment(store, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    assert export_runs(store.root, tmp_path / f"runs{suffix}") == 3
    first, second, failed = read(tmp_path / f"runs{suffix}")
    assert (first["run_id"], first["status"], float(first["result.test_accuracy"])) == (
        "a",
        "done",
        0.5,
    )
    assert int(first["result.examples.test"]) == 10 and first["environment.versions.jax"] == "0.10"
    assert int(first["config.lora.rank"]) == 8 and json.loads(first["config.sweep.rank"]) == []
    assert second["result.peak_bytes"] in ("", None) and float(first["result.peak_bytes"]) == 1
    assert failed["error"] == 'ValueError: no, "never"\nagain' and failed[
        "result.test_accuracy"
    ] in ("", None)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_row_a_step_without_half_written_ones(store, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    assert export_runs(store.root, tmp_path / f"steps{suffix}", steps=True) == 4
    rows = read(tmp_path / f"steps{suffix}")
    assert [(row["run_id"], int(row["step"]), float(row["loss"])) for row in rows] == [
        ("a", 1, 0.5), ("a", 2, 0.25), ("b", 1, 0.5), ("b", 2, 0.25),
    ]  # fmt: skip


def test_pandas_reads_the_files_of_the_store_itself(store):
    pandas = pytest.importorskip("pandas", reason="reading with pandas needs pandas")
    index = pandas.read_json(store.root / "index.jsonl", lines=True)
    assert set(index["status"].dropna()) == {"running", "done", "failed"}


def test_what_cannot_be_exported_says_so(store, tmp_path, capsys):
    assert cli.main(["export", "runs", str(store.root), "--out", str(tmp_path / "runs.xls")]) == 2
    assert ".csv or .parquet" in capsys.readouterr().err
    assert (
        cli.main(["export", "runs", str(tmp_path / "absent"), "--out", str(tmp_path / "runs.csv")])
        == 2
    )
    assert cli.main(["export", "runs", str(tmp_path), "--out", str(tmp_path / "runs.csv")]) == 2
    assert "nothing to export" in capsys.readouterr().err
    assert cli.main(["export", "runs", str(store.root), "--out", str(tmp_path / "runs.csv")]) == 0
    assert "3 rows" in capsys.readouterr().out
