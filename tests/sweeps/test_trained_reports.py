"""A task like STS-B and one like CoLA, from the first step to the report: trained runs name their
metric, alone and side by side.
"""

import csv
import json

import pytest
from tiny_encoder import save_tiny_encoder
from tiny_tasks import records

from lora_jax.config import from_config_dict
from lora_jax.metrics.predictions import load_predictions
from lora_jax.metrics.table import METRICS
from lora_jax.sweeps.report import write_report
from lora_jax.sweeps.runner import run_sweep
from lora_jax.sweeps.store import RunStore
from lora_jax.tasks.predictions import predict
from lora_jax.training.saved import load_run

TASKS = {
    "stsb": ("pair_regression", ("pearson", "spearman"), "Pearson correlation"),
    "cola": ("classification", ("matthews", "accuracy"), "Matthews correlation"),
}


def write_data(path, recipe):
    """Texts whose score or class follows from their words; a pair's second text is half of it."""
    rows = records("regression" if recipe == "pair_regression" else recipe)
    if recipe == "pair_regression":
        rows = [row | {"text_pair": " ".join(row["text"].split()[:2])} for row in rows]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.mark.parametrize(("name", "stack"), [("stsb", 1), ("cola", 2)])
def test_a_trained_sweep_is_reported_by_the_metric_of_its_task(name, stack, tmp_path):
    recipe, metrics, words = TASKS[name]
    config = from_config_dict(
        {
            "model": {"name": str(save_tiny_encoder(tmp_path / "model")), "scan": False},
            "data": {"name": str(write_data(tmp_path / "a.jsonl", recipe)), "recipe": recipe, "max_length": 24, "metrics": metrics},
            "method": "lora",
            "lora": {"targets": "query+value"},
            "optim": {"learning_rate": 1e-2},
            "train": {"total_steps": 12, "batch_size": 16, "eval_batch_size": 16, "log_every": 10},
            "sweep": {"rank": (1, 2), "format": ("none",), "targets": ("query+value",), "stack": stack},
            "out": str(tmp_path / "runs"),
        }
    )  # fmt: skip
    outcome = run_sweep(config, quiet=True, say=lambda text: None)
    assert len(outcome.done) == 2 and outcome.failed == ()

    runs = RunStore(config.out).runs()
    text = write_report(config.out).read_text()
    assert f"test {words}" in text and " points" not in text and "binomial" not in text
    with (tmp_path / "runs" / "report" / "report.csv").open() as file:
        rows = {row["run_id"]: row for row in csv.DictReader(file)}
    for record in runs:
        result = record.result
        assert result.primary == metrics[0] and result.score("test").unit == "records"
        assert result.stacked == (None if stack == 1 else 2)
        assert float(rows[record.run_id][f"test_{metrics[1]}"]) == result.value("test", metrics[1])
        # What the report says is what the saved adapter does, by the metric's own function.
        run = load_run(record.folder)
        predictions = predict(run.task, run.frozen, run.trainable, "test", batch_size=16)
        kept = load_predictions(record.folder / "predictions" / "test.jsonl")
        assert kept.column("id") == predictions.column("id")
        assert kept.column("loss") == pytest.approx(predictions.column("loss"), rel=1e-4)
        said, right = predictions.column("predicted"), predictions.column("references")
        assert METRICS[metrics[0]].score(said, right) == pytest.approx(
            result.value("test"), abs=1e-5
        )
    best = max(run.result.value("test") for run in runs)
    assert f"{best:.3f}" in text
