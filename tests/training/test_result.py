"""A result says what it is written as, old ones keep their meaning, and odd ones are refused by
name.
"""

import json
import math

import pytest

from lora_jax.metrics.score import Score
from lora_jax.training.result import RunResult

OLD = {
    "run_id": "lora-r4-s0", "method": "lora", "rank": 4, "seed": 0, "test_accuracy": 0.75, "test_loss": 0.5,
    "validation_accuracy": 0.7, "validation_loss": 0.6, "examples": {"train": 800, "validation": 90, "test": 100},
    "steps": 60, "trainable_parameters": 9_000, "base_bytes": 90_900_000, "seconds": 24.0, "note": "two texts were cut",
}  # fmt: skip


def pair_regression() -> RunResult:
    scores = {
        "test": {
            "pearson": Score("pearson", 0.61, count=100),
            "loss": Score("loss", 0.4, higher_is_better=False, count=100),
        }
    }
    return RunResult(scores, "pearson", {"train": 10, "test": 100}, steps=3, seconds=1.5)


def test_a_result_comes_back_from_its_file_as_it_was():
    result = pair_regression()
    assert RunResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.value("test") == 0.61 and result.value("test", "loss") == 0.4
    assert result.row()["test_pearson"] == 0.61 and result.row()["examples.train"] == 10
    with pytest.raises(KeyError, match="no validation pearson. It has: test pearson, test loss"):
        result.score("validation")


def test_a_score_that_is_no_number_is_null_in_the_file_and_known_as_such():
    scores = {"test": {"pearson": Score("pearson", math.nan, count=4)}}
    text = json.dumps(RunResult(scores, "pearson").to_json(), allow_nan=False)
    assert not RunResult.from_json(json.loads(text)).score("test").is_finite


def test_an_old_result_keeps_its_meaning():
    result = RunResult.from_json(OLD)
    accuracy = result.score("test")
    assert (accuracy.name, accuracy.value, accuracy.unit) == ("accuracy", 0.75, "records")
    assert accuracy.share and accuracy.count == 100 and accuracy.higher_is_better
    assert result.value("validation", "loss") == 0.6
    assert not result.score("validation", "loss").higher_is_better
    assert (result.steps, result.trainable_parameters, result.seconds) == (60, 9_000, 24.0)
    assert result.note == "two texts were cut" and result.examples["train"] == 800


@pytest.mark.parametrize(
    ("data", "extra", "primary", "unit"),
    [
        (dict(recipe="pair_regression", metrics=["pearson", "spearman"]), ("pearson", "spearman"), "pearson", "records"),
        (dict(recipe="classification", metrics=["matthews", "accuracy"]), ("matthews",), "matthews", "records"),
        (dict(recipe="token_classification"), ("token_f1",), "token_f1", "words"),
        (dict(recipe=None, task="classification"), (), "accuracy", "records"),
        (dict(recipe=None, task="completion"), (), "loss", "tokens"),
        (dict(recipe="instruction"), (), "loss", "tokens"),
        (dict(recipe="qa"), (), "loss", "tokens"),
    ],
)  # fmt: skip
def test_an_old_results_metric_and_unit_are_those_of_its_data(data, extra, primary, unit):
    old = OLD | {f"test_{name}": 0.5 for name in extra}
    result = RunResult.from_json(old, {"data": data})
    assert result.primary == primary and result.score("test", "loss").unit == unit
    # Tokens of one text are no independent answers, so their accuracy is no share with an error.
    assert result.score("test", "accuracy").share == (unit == "records" and primary != "pearson")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_accuracy": "x"}, "test_accuracy"),
        ({"test_accuracy": True}, "test_accuracy"),
        ({"examples": 5}, "examples"),
        ({"examples": {"test": "many"}}, "'test'"),
        ({"seconds": [1]}, "seconds"),
        ({"note": 7}, "note"),
        ({"version": 3}, "version 3"),
        ({"version": "new"}, "version 'new'"),
    ],
)
def test_a_field_of_another_type_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        RunResult.from_json(OLD | change)


def test_a_result_without_the_score_to_report_is_refused():
    with pytest.raises(ValueError, match="no test accuracy"):
        RunResult.from_json({key: value for key, value in OLD.items() if key != "test_accuracy"})
    with pytest.raises(ValueError, match="no test bleu"):
        RunResult.from_json(pair_regression().to_json() | {"primary": "bleu"})


@pytest.mark.parametrize(
    ("score", "label"),
    [
        (Score("accuracy", 0.5), "accuracy"),
        (Score("accuracy", 0.5, unit="tokens"), "token accuracy"),
        (Score("loss", 0.5, False, "tokens"), "loss (nats a token)"),
        (Score("matthews", 0.5), "Matthews correlation"),
        (Score("my_own", 0.5), "my own"),
    ],
)
def test_a_score_has_a_name_in_words(score, label):
    assert score.label == label
