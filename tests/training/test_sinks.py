"""Sinks get each row once, whatever restarts come between; W&B and MLflow offline, read back."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from lora_jax.config import Config, config_hash
from lora_jax.config.fields import Sink
from lora_jax.training.metrics import MetricsLog
from lora_jax.training.sinks import SINKS

LAST = 4


class Recorded:
    """A sink that remembers what it got, by id."""

    remembers = True
    places = {}

    def __init__(self, folder, about):
        self.about = about

    def open(self, step, id):
        self.rows, self.ends = self.places.setdefault(id or f"id{len(self.places)}", ([], []))
        return id or f"id{len(self.places) - 1}"

    def write(self, step, split, values):
        self.rows.append((step, split, *values.values()))

    def close(self, *, done):
        self.ends.append(done)


class Replaced(Recorded):
    """One that sorts out itself what comes again, as TensorBoard does."""

    remembers = False


@pytest.fixture
def places(monkeypatch):
    monkeypatch.setitem(SINKS, "fake", Recorded)
    monkeypatch.setitem(SINKS, "events", Replaced)
    monkeypatch.setattr(Recorded, "places", {})
    return Recorded.places


def train(log, start, end, checkpoint=None):
    """Rows of the steps from `start` + 1 to `end`, and after the last the final scores."""
    log.resume(start, LAST)
    for step in range(start + 1, end + 1):
        log.write(step, "train", {"loss": 1 / step})
        if step == 2:
            log.write(step, "validation", {"loss": 0.5})
    if end == LAST:
        for split in ("validation", "test"):
            log.write(LAST, split, {"loss": 0.25})


def killed(log, start, end):
    """The same, by a process that ends without a word."""
    train(log, start, end)
    log._open.clear()
    log.close()


WHOLE = [
    (1, "train", 1.0),
    (2, "train", 0.5),
    (2, "validation", 0.5),
    (3, "train", 1 / 3),
    (4, "train", 0.25),
    (4, "validation", 0.25),
    (4, "test", 0.25),
]


def test_a_sink_gets_every_row_once_over_restarts(places, tmp_path):
    for start, end in ((0, 3), (2, 3), (2, 2), (2, LAST)):
        killed(MetricsLog(tmp_path, ("fake",)), start, end)
    log = MetricsLog(tmp_path, ("fake",))
    train(log, LAST, LAST)
    log.close()
    assert list(places) == ["id0"] and places["id0"] == (WHOLE, [True])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(WHOLE)

    # From the first step on it is another training.
    log = MetricsLog(tmp_path, ("fake",))
    train(log, 0, 2)
    log.close()
    assert places["id1"] == (WHOLE[:3], [False])


def test_a_sink_that_is_named_later_gets_the_rows_so_far(places, tmp_path):
    killed(MetricsLog(tmp_path, ("events",)), 0, 2)
    killed(MetricsLog(tmp_path, ("events", "fake")), 2, 3)
    killed(MetricsLog(tmp_path, ()), 2, 3)
    killed(MetricsLog(tmp_path, ("fake",)), 3, LAST)
    assert places["id0"][0] == WHOLE[:3] and places["id1"][0] == WHOLE[3:4]  # of events
    assert places["id2"][0] == WHOLE

    (tmp_path / "sinks.json").write_text("{")  # then nothing is known, and all of it is sent anew
    killed(MetricsLog(tmp_path, ("fake",)), LAST, LAST)
    assert places["id3"][0] == WHOLE


def test_sinks_are_a_table_and_no_part_of_a_runs_id():
    assert tuple(SINKS) == get_args(Sink)
    config = Config()
    other = replace(config, train=replace(config.train, sinks=("wandb", "mlflow")))
    assert config_hash(other) == config_hash(config)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_sink_that_is_not_installed_names_its_extra(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"'{name}'.*pip install 'lora-jax\[{name}\]'"):
        MetricsLog(tmp_path, (name,))


# What follows runs where the extra is installed: the packages are too large for every test run.

SIDE_BY_SIDE = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from lora_jax.training.run import about
from test_sinks import LAST, Config, MetricsLog, train
out, sink = Path({out!r}), {sink!r}
stopped = [(0, 3), (2, LAST)]
for start, end in stopped:
    logs = [MetricsLog(out / name, (sink,), about(out / name, Config())) for name in ("one", "two")]
    for log in logs:
        train(log, start, end)
    for log in logs:
        log.close()
"""


def side_by_side(sink, out, **variables):
    """Two runs that are open at once, stopped after step 3 and gone on with from step 2."""
    for name in ("one", "two"):
        (out / name).mkdir(parents=True)
    here = Path(__file__).parent
    variables["PYTHONPATH"] = str(here.parents[1])
    subprocess.run(
        [sys.executable, "-c", SIDE_BY_SIDE.format(here=str(here), out=str(out), sink=sink)],
        check=True,
        cwd=out,
        env=os.environ | variables,
    )


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log, blocks of 32 KiB, behind seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        length, kind = struct.unpack("<4xHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb_offline_has_each_row_once(tmp_path):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    side_by_side("wandb", tmp_path, WANDB_MODE="offline")
    ids = set()
    for name in ("one", "two"):
        rows, files = [], sorted((tmp_path / name / "wandb").glob("offline-run-*/*.wandb"))
        assert len(files) == 2
        for file in files:
            for record in wandb_records(file):
                if record.WhichOneof("record_type") == "history":
                    items = {
                        item.key or item.nested_key[0]: json.loads(item.value_json)
                        for item in record.history.item
                    }
                    (kind,) = (key for key in items if key.endswith("/loss"))
                    rows.append((items["step"], kind.partition("/")[0], items[kind]))
                elif record.WhichOneof("record_type") == "run":
                    run = record.run
        assert rows == WHOLE
        assert (run.display_name, run.project, run.run_group) == (name, "lora-jax", tmp_path.name)
        assert list(run.tags) == ["lora", "minilm-l6", "rotten_tomatoes"]
        config = {item.key: item.value_json for item in run.config.update}
        assert json.loads(config["lora.rank"]) == 8
        ids.add(run.run_id)
    assert len(ids) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what MLflow asks of SQLAlchemy
def test_mlflow_in_a_local_file_has_each_row_once(tmp_path):
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    side_by_side("mlflow", tmp_path, MLFLOW_TRACKING_URI=uri)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("lora-jax")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["one", "two"]
    for run in runs:
        points = [
            (point.step, split, point.value)
            for split in ("train", "validation", "test")
            for point in client.get_metric_history(run.info.run_id, f"{split}/loss")
        ]
        assert sorted(points) == sorted(WHOLE)
        assert run.info.status == "FINISHED" and run.data.params["lora.rank"] == "8"
        assert run.data.tags["method"] == "lora" and run.data.tags["store"] == tmp_path.name
