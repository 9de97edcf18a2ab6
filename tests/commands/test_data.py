"""`lora-jax data preview`: records, prompts with the tokens that count, lengths, and what splits
share.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_encoder import save_tiny_encoder
from tiny_language import write_tiny_model
from tiny_tasks import write_task

from lora_jax import cli
from lora_jax.data.preview import histogram, overlaps

MY_DATA = str(Path(__file__).parents[2] / "configs" / "tasks" / "my_data.py")


def preview(capsys, recipe, *changes):
    given = [
        "data",
        "preview",
        "--config",
        f"{MY_DATA}:{recipe}",
        *(f"--config.{change}" for change in changes),
    ]
    assert cli.main(given) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_decoders_preview_marks_the_tokens_that_bear_loss(tmp_path, capsys):
    data = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": f"ab{n}", "summary": "ba"}) for n in range(60)]
    data.write_text("\n".join([*rows, "{broken"]))
    changes = (
        f"model.name={write_tiny_model(tmp_path / 'model')}",
        f"data.name={data}",
        "data.max_length=20",
        "data.on_error=skip",
    )
    out = preview(capsys, "summarisation", *changes)
    assert "1 rows left out: 1 with broken JSON" in out and f"{data}:61" in out
    assert re.search(r"prompt: 'ab\d+\\nSummary:'\ncompletion: 'ba'", out)
    assert "«ba<eos>»" in out.replace("<unk>", "") and "tokens: " in out and "cut at 20" in out
    assert "test: 0 of" in out and "held-out texts are in the training set" in out


def test_an_encoders_preview_shows_classes_and_lengths(tmp_path, capsys):
    data = write_task(tmp_path / "a.jsonl", "classification", 80)
    out = preview(
        capsys,
        "classification",
        f"model.name={save_tiny_encoder(tmp_path / 'model')}",
        f"data.name={data}",
        "data.max_length=20",
    )
    assert (
        "classes of train: neg " in out
        and re.search(rf"\({data}:\d+\)", out)
        and "label: '" in out
        and "cut to max_length: none" in out
    )


def test_a_config_without_a_recipe_is_shown_as_one_with(tmp_path, capsys):
    data = tmp_path / "a.csv"
    data.write_text("words,sort\n" + "\n".join(f"film {n},{n % 2}" for n in range(80)) + "\n")
    (tmp_path / "config.py").write_text(
        f"def get_config():\n    return dict(model=dict(name={str(save_tiny_encoder(tmp_path / 'model'))!r}), "
        f"data=dict(name={str(data)!r}, text='words', label='sort', max_length=20))\n"
    )
    assert cli.main(["data", "preview", "--config", str(tmp_path / "config.py")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"classes of train: 0 \d+, 1 \d+", out) and f"({data}:2)" in out


def test_a_wrong_field_is_one_paragraph(tmp_path, capsys):
    data = write_task(tmp_path / "a.jsonl", "classification", 40)
    model = save_tiny_encoder(tmp_path / "model")
    given = [
        "data",
        "preview",
        "--config",
        f"{MY_DATA}:classification",
        f"--config.model.name={model}",
        f"--config.data.name={data}",
    ]
    assert cli.main([*given, "--config.data.fields.text=txt"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert (
        "a.jsonl:1: a row needs the field 'txt'" in text
        and "Nearest: 'text'" in text
        and "--config.data.fields" in text
    )


def test_histogram_counts_every_example():
    lengths = np.array([3, 3, 4, 10, 90], np.int32)
    lines = histogram(lengths, cap=64)
    assert lines[0] == "tokens: 3 to 90, median 4, 95 % up to 90, cut at 64"
    assert sum(int(line.split()[-1]) for line in lines[1:]) == 5


def test_overlaps_name_repeated_and_shared_inputs():
    from lora_jax.data.completions import Completions

    lines = overlaps(
        {
            "train": Completions(("a", "a", "b"), ("x",) * 3),
            "test": Completions(("B!", "c"), ("x",) * 2),
        }
    )
    assert (
        lines[0] == "train: 1 of 3 inputs came before in it"
        and "1 of 2 held-out texts" in lines[-1]
    )


@pytest.mark.parametrize("given", [["data", "review", "--config", MY_DATA], ["data", "preview"]])
def test_the_command_says_what_it_takes(given, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(given)
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err
