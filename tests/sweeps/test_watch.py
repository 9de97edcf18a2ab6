"""The live view says what the store says."""

import io
import json
import time

import pytest
from rich.console import Console

from lora_jax import cli
from lora_jax.config import Config, TrainConfig
from lora_jax.sweeps.store import RunStore
from lora_jax.sweeps.watch import frame, is_over, look
from lora_jax.training.result import RunResult

RUN = Config(train=TrainConfig(total_steps=40))


def text_of(seen) -> str:
    console = Console(width=170, file=io.StringIO(), record=True)
    console.print(frame(seen))
    return console.export_text()


@pytest.fixture
def store(tmp_path):
    """Two done runs of 100 s, one that failed, one at step 10 of 40, two to come."""
    store = RunStore(tmp_path)
    store.write_plan(["a", "b", "bad", "run", "later", "last"])
    for name, accuracy in (("a", 0.7), ("b", 0.8)):
        store.start(name, RUN, {})
        store.finish(name, RunResult.from_json({"test_accuracy": accuracy, "seconds": 100.0}))
    store.start("bad", RUN, {})
    store.fail("bad", ValueError("the loss [at step 3] is NaN"))
    folder = store.start("run", RUN, {})
    rows = [
        {"step": step, "split": "train", "loss": 0.7 - step / 100, "time": time.time() - 5}
        for step in (5, 10)
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 15, "lo'
    )
    yield store
    store.release("run")


def test_a_frame_has_counts_the_best_the_failed_and_where_each_run_stands(store):
    seen = look(store.root)
    text = text_of(seen)
    assert "2 done, 1 running, 1 failed, 2 pending; 3 of 6 ended" in text
    assert "best so far: 80.0% test accuracy, b" in text
    assert "ValueError: the loss [at step 3] is NaN" in text
    assert "10/40" in text and "0.6000" in text and "5 s ago" in text
    assert not is_over(seen)


def test_the_time_left_is_that_of_the_runs_to_come(store):
    # Two whole runs and three quarters of one, of 100 s each, by one launcher.
    assert look(store.root).seconds_left == pytest.approx(275)
    assert "about 4 min 35 s" in text_of(look(store.root))


def test_without_a_launcher_it_says_how_to_go_on(store):
    store.release("run")
    seen = look(store.root)
    assert seen.seconds_left is None and "nobody is at work" in text_of(seen)
    assert "1 interrupted" in text_of(seen)


def test_it_is_over_when_every_planned_run_has_ended(tmp_path):
    store = RunStore(tmp_path)
    store.write_plan(["a"])
    assert not is_over(look(tmp_path))
    store.start("a", RUN, {})
    store.finish("a", RunResult.from_json({"test_accuracy": 0.5, "seconds": 1.0}))
    assert is_over(look(tmp_path)) and "every run has ended" in text_of(look(tmp_path))


def test_the_command_prints_one_frame_and_complains_of_what_is_not_there(store, capsys):
    assert cli.main(["watch", str(store.root), "--once"]) == 0
    assert "best so far" in capsys.readouterr().out
    assert cli.main(["watch", str(store.root / "absent"), "--once"]) == 2
    assert "no store" in capsys.readouterr().err
    assert cli.main(["watch", str(store.root), "--every", "0"]) == 2
    assert "above 0" in capsys.readouterr().err
