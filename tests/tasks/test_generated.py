"""A decoder's adapter against its base: losses and texts of each example, forgetting, and the
command that prints them.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_language import write_completions, write_tiny_model

import lora_jax
from lora_jax import cli
from lora_jax.commands.evaluate import _perplexity
from lora_jax.config import from_config_dict, to_dict
from lora_jax.data.completions import Completions
from lora_jax.data.recipes import Decoding
from lora_jax.generation.engine import Generator
from lora_jax.io.adapter import load_adapter, save_adapter
from lora_jax.io.weights import load_decoder
from lora_jax.metrics.comparison import aligned, compare
from lora_jax.metrics.predictions import Prediction, Predictions
from lora_jax.models.decoder import Decoder
from lora_jax.tasks.generated import cut_at_stop, generate_predictions
from lora_jax.tasks.language import DecoderTask
from lora_jax.tasks.predictions import predict, scores_of
from lora_jax.training.loop import train
from lora_jax.training.result import RunResult
from lora_jax.training.saved import load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run of a tiny decoder on a recipe of its own."""
    base = tmp_path_factory.mktemp("generation")
    write_completions(base / "a.jsonl", 160)
    config = from_config_dict(
        {
            "model": {"name": str(write_tiny_model(base / "model"))},
            "data": {
                "task": "completion",
                "name": str(base / "a.jsonl"),
                "recipe": "completion",
                "fields": {"prompt": "input", "completion": "ideal"},
                "decoding": {"max_new": 4},
                "max_length": 24,
            },
            "method": "lora",
            "lora": {"rank": 4, "alpha": 8.0},
            "optim": {"learning_rate": 0.02},
            "train": {
                "total_steps": 60,
                "batch_size": 16,
                "eval_batch_size": 8,
                "log_every": 30,
                "checkpoint_every": 60,
            },
        }
    )
    result = train(config, base / "run", quiet=True)
    (base / "run" / "config.json").write_text(json.dumps(to_dict(config)))
    (base / "run" / "result.json").write_text(json.dumps(result.to_json()))
    return base / "run"


def test_losses_of_examples_add_up_to_the_loops_loss(folder):
    run, result = (
        load_run(folder),
        RunResult.from_json(json.loads((folder / "result.json").read_text())),
    )
    scored = predict(run.task, run.frozen, run.trainable, "test", batch_size=8)
    loss, units, correct = (scored.column(name).sum() for name in ("loss", "units", "correct"))
    assert loss / units == pytest.approx(
        result.value("test", "loss"), rel=1e-5
    ) and correct / units == pytest.approx(result.value("test", "accuracy"))
    few = predict(run.task, run.frozen, run.trainable, "test", batch_size=8, examples=3)
    assert [row.id for row in few.rows] == [row.id for row in scored.rows[:3]]
    # Batches of other sizes: a few fp32 ulps.
    np.testing.assert_allclose(few.column("loss"), scored.column("loss")[:3], rtol=1e-5)


def test_the_adapter_beats_its_base_and_the_test_says_so(folder):
    run = load_run(folder)
    ours, base = (
        predict(run.task, run.frozen, trainable, "test", batch_size=8)
        for trainable in (run.trainable, run.without_adapter())
    )
    test = compare(ours, base, resamples=200)
    assert test["loss"]["value"] < 0 and test["loss"]["high"] < 0 and test["loss"]["p"] < 0.02
    with pytest.raises(ValueError, match="only 0 are equal"):
        aligned(
            ours,
            Predictions(
                "test",
                (),
                tuple(row.__class__(**{**vars(row), "id": row.id[::-1]}) for row in base.rows),
            ),
        )


@pytest.mark.parametrize("beams", [1, 2])
def test_generated_texts_are_scored_against_their_references(folder, beams):
    run = load_run(folder)
    decoding = Decoding(max_new=4, beams=beams)
    made = generate_predictions(
        run.task, run.frozen, run.trainable, "test", decoding=decoding, batch_size=4, examples=6
    )
    base = generate_predictions(
        run.task, run.frozen, {}, "test", decoding=decoding, batch_size=4, examples=6
    )
    assert made.metrics == ("exact_match",) and [row.references for row in made.rows] == [
        row.references for row in base.rows
    ]
    right = lambda rows: sum(row.predicted[:1] == row.references[0][:1] for row in rows)
    assert right(made.rows) > right(base.rows)


def test_a_tasks_scores_hold_those_of_its_texts_when_they_are_asked_for(folder):
    run = load_run(folder)
    what, options = (run.task, run.frozen, run.trainable, "test"), dict(batch_size=4, examples=2)
    scored = predict(*what, **options)
    made = generate_predictions(*what, scored=scored, **options)
    plain, written = (scores_of(one, run.task.primary) for one in (scored, made))
    assert [one.name for one in plain] == ["loss", "accuracy"] and written[:2] == plain
    score = written[2]
    assert (score.name, score.unit, score.count) == ("exact_match", "records", 2)
    assert score.value == pytest.approx(score.per_example.mean())


@pytest.mark.parametrize("window", [1, 3])
def test_a_prompt_that_is_too_long_keeps_its_first_token_and_its_end(folder, window, monkeypatch):
    run, given = load_run(folder), []
    recorded = lambda self, prompts, **_: given.extend(prompts) or [[] for _ in prompts]
    monkeypatch.setattr(Generator, "generate_all", recorded)
    decoding = Decoding(max_new=run.task.model.config.max_positions - window)
    generate_predictions(run.task, run.frozen, {}, "test", decoding=decoding, examples=2)
    encoded = run.task.splits["test"]
    whole = [encoded.tokens[n][: encoded.prompt_lengths[n]].tolist() for n in range(2)]
    first = 1 if window > 1 else 0
    assert given == [[*prompt[:first], *prompt[first - window :]] for prompt in whole]


def test_any_of_the_references_is_right(folder, monkeypatch):
    run = load_run(folder)
    written = run.task.tokenizer.encode("b", special=False)
    recorded = lambda self, prompts, **_: [written for _ in prompts]
    monkeypatch.setattr(Generator, "generate_all", recorded)
    right = (("a", " b"),) * len(run.task.splits["test"])
    task = replace(run.task, records={"test": replace(run.task.records["test"], references=right)})
    (row,) = generate_predictions(task, run.frozen, {}, "test", examples=1).rows
    assert (row.predicted, row.references, row.correct) == ("b", ["a", " b"], 1.0)


def test_texts_end_before_the_first_stop_string_and_a_leading_one_is_skipped():
    assert (
        cut_at_stop("\n\nyes\nno", ["\n"]) == "yes"
        and cut_at_stop("yes", ["\n"]) == "yes"
        and cut_at_stop("a END b", ["END"]) == "a "
    )


def test_the_command_compares_with_the_base_and_reports_forgetting(folder, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text(
        "\n".join(json.dumps({"prompt": f"x{n % 10}", "completion": "yy"}) for n in range(20))
    )
    given = [
        "evaluate",
        str(folder),
        "--against",
        "base",
        "--examples",
        "8",
        "--resamples",
        "100",
        "--forgetting",
        str(other),
        "--contamination",
        "--json",
    ]
    assert cli.main(given) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["examples"] == 8 and out["against"]["difference"]["loss"]["high"] < 0
    assert any(text.startswith("first better (loss") for text in out["against"]["verdict"])
    assert out["perplexity_per_token"] == pytest.approx(np.exp(out["loss"]), rel=1e-6)
    assert out["forgetting"]["difference"]["value"] == pytest.approx(
        out["forgetting"]["after"]["value"] - out["forgetting"]["before"]["value"], abs=1e-6
    )
    assert "held-out texts are in the training set" in out["contamination"]["finding"]
    kept = (folder / "predictions" / "test.jsonl").read_text().splitlines()
    assert len(kept) == 9
    assert cli.main([*given[:2], "--generate", "--examples", "4"]) == 0
    assert "exact match" in capsys.readouterr().out  # a table
    assert cli.main([*given[:2], "--examples", "0"]) == 2 and "1 or more" in capsys.readouterr().err


def test_a_run_merged_for_other_tools_is_the_same_function(folder, tmp_path, capsys):
    out = tmp_path / "model"
    assert cli.main(["export", "merged", str(folder), str(out)]) == 0
    saved = load_run(folder)
    ids = jnp.arange(4, 12)[None]
    expected = lora_jax.apply(saved.task.model, saved.frozen, saved.trainable, ids)
    config, params = load_decoder(out)
    given = Decoder(config).apply({"params": params}, ids)
    # Sums in another order.
    assert jnp.allclose(given, expected, atol=1e-4)

    pytest.importorskip("gguf")
    one = tmp_path / "model.gguf"
    assert cli.main(["export", "merged", str(folder), str(one), "--gguf", "F32"]) == 2
    # This model's words are none that GGUF can say.
    assert "cannot be written as GGUF" in capsys.readouterr().err and not one.exists()


def test_a_perplexity_a_byte_counts_the_bytes_of_utf_8():
    records = Completions(("a", "b"), ("né", "x"))
    splits = {"test": SimpleNamespace(truncated=0)}
    task = DecoderTask(None, {}, {}, splits, lambda: "", records={"test": records})
    ours = Predictions("test", (), (Prediction("1", 3 * math.log(5), 2.0, 0.0),))
    found = _perplexity(SimpleNamespace(task=task), argparse.Namespace(split="test"), ours)
    assert found["perplexity_per_byte"] == pytest.approx(5)
    assert found["perplexity_per_token"] == pytest.approx(5**1.5)
    task.splits["test"].truncated = 1  # Of texts that were cut it would be of other texts.
    assert _perplexity(SimpleNamespace(task=task), argparse.Namespace(split="test"), ours) == {}


def test_an_encoders_base_cannot_be_scored(tiny, tmp_path, capsys):
    assert (
        cli.main(
            [
                "train",
                "--config",
                f"{Path(__file__).parents[2]}/configs/rotten_tomatoes.py:lora",
                "--quiet",
                f"--config.out={tmp_path}",
                *(f"--{k}={v}" for k, v in tiny.items()),
            ]
        )
        == 0
    )
    capsys.readouterr()
    (run,) = [path.parent for path in tmp_path.glob("*/result.json")]
    for options, words in (
        (["--against", "base"], "trained whole"),
        (["--generate"], "by language models"),
        (["--forgetting", "a"], "encoder with a head"),
    ):
        assert cli.main(["evaluate", str(run), *options]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert cli.main(["evaluate", str(run), "--against", str(run), "--contamination", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["against"]["difference"]["mcnemar"] == {"first_only": 0, "second_only": 0, "p": 1.0}
    assert cli.main(["evaluate", str(run), str(run), "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    seeds = both["seeds"]["accuracy"]
    assert (seeds["runs"], seeds["deviation"], seeds["mean"]) == (2, 0.0, out["accuracy"])
    crossed = both["seeds and examples"]["accuracy"]
    assert crossed["value"] == pytest.approx(out["accuracy"]) and crossed["low"] < crossed["value"]
    # The order of the classes is that of the head's outputs.
    trainable, said = load_adapter(run / "adapter")
    named = dict(base=said["base"], model=said["model"])
    labels = tuple(json.loads(said["labels"]))[::-1]
    save_adapter(run / "adapter", trainable, label_names=labels, **named)
    assert cli.main(["evaluate", str(run)]) == 2
    assert f"trained on the classes {', '.join(labels)}, in this order" in " ".join(
        capsys.readouterr().err.split()
    )
