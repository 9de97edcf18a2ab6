"""Encoders with every head learn their recipe through the ordinary loop, and are scored by its
metrics, example by example.
"""

import json

import jax
import numpy as np
import pytest
from tiny_encoder import save_tiny_encoder
from tiny_tasks import HEADS, write_task

from lora_jax.config import from_config_dict, to_dict
from lora_jax.metrics.comparison import compare, intervals
from lora_jax.metrics.predictions import load_predictions, save_predictions
from lora_jax.tasks.heads import best_span
from lora_jax.tasks.predictions import predict
from lora_jax.tasks.reading import recipe_of
from lora_jax.training.loop import train
from lora_jax.training.saved import load_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("model"))


def config_of(model, data, recipe, steps=60, **changes):
    return from_config_dict(
        {
            "model": {"name": str(model), "scan": False},
            "data": {"name": str(data), "recipe": recipe, "max_length": 24},
            "method": "full",
            "optim": {"learning_rate": 1e-2},
            "train": {
                "total_steps": steps,
                "batch_size": 16,
                "eval_batch_size": 16,
                "log_every": 50,
                "checkpoint_every": 1000,
            },
            **changes,
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", HEADS)
def test_every_head_learns_and_its_score_is_that_of_the_kept_predictions(recipe, model, tmp_path):
    config = config_of(model, write_task(tmp_path / "a.jsonl", recipe), recipe)
    result = train(config, tmp_path / "run", quiet=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(config)))
    run = load_run(tmp_path / "run")
    predictions = predict(run.task, run.frozen, run.trainable, "test", batch_size=16)
    assert (
        len(predictions.rows) == len(run.task.splits["test"])
        and predictions.metrics == run.task.recipe.metrics
    )
    # Training kept what `lora-jax evaluate` would.
    kept = load_predictions(tmp_path / "run" / "predictions" / "test.jsonl")
    assert len(kept.rows) == len(predictions.rows) and kept.classes == predictions.classes
    for own, made in zip(kept.rows, predictions.rows, strict=True):
        assert (own.id, own.references, own.units) == (made.id, made.references, made.units)
        is_number = isinstance(made.predicted, float)
        said = pytest.approx(made.predicted, rel=1e-5) if is_number else made.predicted
        assert own.predicted == said
        assert (own.loss, own.correct) == pytest.approx((made.loss, made.correct), rel=1e-5)
    scores = intervals(predictions, resamples=50)
    assert all(
        result.value("test", name) == pytest.approx(scores[name].value)
        for name in predictions.metrics
    )
    # The same sums: float32 on the device, float64 here.
    assert scores["loss"].value == pytest.approx(result.value("test", "loss"), rel=1e-5)
    assert scores["accuracy"].value == pytest.approx(result.value("test", "accuracy"), abs=1e-6)
    first = predictions.metrics[0]
    assert all(
        np.isfinite(scores[name].value) and scores[name].low <= scores[name].high
        for name in predictions.metrics
    )
    # What decides is one of two words among about seven; random weights sit at chance.
    chance = {"regression": 0.0, "token_classification": 0.25, "qa": 0.2}.get(recipe, 0.5)
    assert scores[first].value > chance + 0.2
    path = save_predictions(tmp_path / "p.jsonl", predictions)
    assert load_predictions(path) == predictions
    assert compare(predictions, load_predictions(path), resamples=20)["loss"]["p"] == 1.0


def test_lora_trains_a_token_head_and_the_last_block_is_computed_for_every_token(model, tmp_path):
    config = config_of(
        model,
        write_task(tmp_path / "a.jsonl", "token_classification"),
        "token_classification",
        4,
        method="lora",
    )
    assert train(config, tmp_path / "run", quiet=True).steps == 4


def test_the_best_span_is_the_best_of_all_legal_ones():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((5, 2, 12)).astype(np.float32)
    spans = np.asarray(best_span(jax.numpy.asarray(logits), 4))
    for row, (begin, end) in zip(logits, spans):
        legal = {(b, e): row[0, b] + row[1, e] for b in range(12) for e in range(b, min(b + 4, 12))}
        assert (begin, end) == max(legal, key=legal.get)


def test_a_recipe_of_texts_needs_a_decoder_and_roles_belong_to_a_recipe(model, tmp_path):
    with pytest.raises(ValueError, match="needs a decoder"):
        path = tmp_path / "b.jsonl"
        path.write_text(
            "\n".join(json.dumps({"text": f"a {n}", "summary": "b"}) for n in range(60))
        )
        train(config_of(model, path, "summarisation", 1), tmp_path / "run", quiet=True)
    with pytest.raises(
        ValueError, match="data.fields.summary is not a role of the recipe 'classification'"
    ):
        from_config_dict({"data": {"recipe": "classification", "fields": {"summary": "x"}}})
    with pytest.raises(ValueError, match="data.recipe must be one of .*Nearest: 'classification'"):
        from_config_dict({"data": {"recipe": "clasification"}})
    scored = from_config_dict({"data": {"recipe": "classification", "metrics": ["bleu"]}})
    with pytest.raises(ValueError, match="'bleu' scores texts, and the answers .* are classes"):
        recipe_of(scored.data)
