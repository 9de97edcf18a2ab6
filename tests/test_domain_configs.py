"""Domain configs take their steps when shrunk; three adapters in a row share one base, and each
wins at home.
"""

import json
from pathlib import Path

import pytest
from tiny_encoder import save_tiny_encoder
from tiny_language import write_tiny_model
from tiny_tasks import write_task

from lora_jax.analysis.domains import adapter_matrix, home_wins
from lora_jax.config import from_config_dict, load_config
from lora_jax.generation.text import TextGenerator
from lora_jax.metrics.predictions import Prediction, Predictions
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.runner import run_sweep
from lora_jax.sweeps.store import RunStore
from lora_jax.tasks.reading import examples_of
from lora_jax.training.saved import load_run

CONFIGS = Path(__file__).parents[1] / "configs" / "domains"
ENCODERS = (
    "healthcare.py",
    "legal.py",
    "sales.py",
    "finance.py:public",
    "legal.py:public",
    "sales.py:public",
)
DECODERS = ("finance.py", "adapters.py:finance", "adapters.py:music", "adapters.py:sales")


def test_every_file_is_tested_here():
    assert {path.name for path in CONFIGS.glob("*.py")} == {
        spec.partition(":")[0] for spec in ENCODERS + DECODERS
    }


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("decoder") / "tiny")


def shrink(spec, out, **values):
    changes = {
        "data.max_length": 24,
        "lora.rank": 2,
        "train.total_steps": 2,
        "train.batch_size": 8,
        "out": out,
    } | values
    config = load_config(
        str(CONFIGS / spec), [f"config.{key}={value}" for key, value in changes.items()]
    )
    assert run_sweep(config, quiet=True, say=print).failed == ()
    assert [record.result.steps for record in RunStore(out).runs()] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("spec", ENCODERS)
def test_a_shrunk_domain_trains_an_encoder(spec, encoder, tmp_path):
    data = write_task(tmp_path / "a.jsonl", "classification", 60)
    own = {
        "data.fields.text": "text",
        "data.fields.label": "label",
        "data.label_names": None,
        "data.on_error": "stop",
    }
    shrink(spec, tmp_path / "runs", **{"model.name": encoder, "data.name": data, **own})


@pytest.mark.slow
@pytest.mark.parametrize("spec", DECODERS)
def test_a_shrunk_domain_trains_a_decoder(spec, decoder, tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text(
        "\n".join(
            json.dumps({"input": [{"role": "user", "content": f"a{n}"}], "ideal": "b"})
            for n in range(60)
        )
    )
    shrink(
        spec,
        tmp_path / "runs",
        **{"model.name": decoder, "data.name": data, "quant.block_size": 16},
    )


def test_multiple_choice_of_the_public_medical_set_is_read(tmp_path, monkeypatch):
    row = {
        "question": "Which?",
        "options": {"A": "one", "B": "two", "C": "three", "D": "four"},
        "answer_idx": "C",
        "answer": "three",
    }
    for split in ("train", "test"):
        rows = [dict(row, question=f"{split} {n}?") for n in range(40)]
        (tmp_path / f"phrases_no_exclude_{split}.jsonl").write_text(
            "\n".join(map(json.dumps, rows))
        )
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    data = examples_of(load_config(str(CONFIGS / "healthcare.py:public")).data)
    assert len(data.splits["test"]) == 40 and data.splits["test"][0].values["answer"] == 2


@pytest.mark.network
@pytest.mark.parametrize(
    ("spec", "records", "classes"),
    [
        ("healthcare.py", 918, 2),
        ("legal.py", None, None),
        ("sales.py", 433, 2),
        ("finance.py", 1164, 0),
    ],
)
def test_the_records_that_a_package_ships_are_read(spec, records, classes):
    data = examples_of(load_config(str(CONFIGS / spec)).data)
    total = sum(map(len, data.splits.values())) + int(
        (data.note.split(" rows with a repeated")[0].split() or ["0"])[-1]
        if "repeated" in data.note
        else 0
    )
    assert records is None or (total, len(data.label_names)) == (records, classes)
    assert records is not None or "several labels" in data.left_out


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three runs on one nf4 base: letters turned round, put between others, or answered with a
    fixed word.
    """
    folder = tmp_path_factory.mktemp("three")
    model = write_tiny_model(folder / "model")
    answers = {
        "turn": lambda a, b: b + a,
        "double": lambda a, b: f"m{a}m",
        "word": lambda a, b: "xyz",
    }
    runs = {}
    for name, answer in answers.items():
        pairs = [(a, b, extra) for a in "abcdefgh" for b in "abcdefgh" for extra in ("", "q", "qq")]
        rows = [{"prompt": f"{a}{b}{extra}", "completion": answer(a, b)} for a, b, extra in pairs]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = from_config_dict(
            {
                "model": {"name": str(model)},
                "data": {
                    "task": "completion",
                    "name": str(folder / f"{name}.jsonl"),
                    "recipe": "completion",
                    "max_length": 24,
                },
                "method": "qlora",
                "quant": {"format": "nf4", "block_size": 8, "double": False},
                "lora": {"rank": 4, "alpha": 8.0},
                "optim": {"learning_rate": 0.02},
                "train": {
                    "total_steps": 40,
                    "batch_size": 16,
                    "eval_batch_size": 8,
                    "log_every": 40,
                    "checkpoint_every": 40,
                },
                "out": str(folder / "runs" / name),
            }
        )
        assert run_sweep(config, quiet=True, say=print).failed == ()
        runs[name] = load_run(RunStore(config.out).folder(run_id(expand(config)[0])))
    return runs


@pytest.mark.slow
def test_each_of_three_adapters_on_one_quantised_base_wins_at_home(three):
    rows = home_wins(adapter_matrix(three, batch_size=8), resamples=200)
    assert len(rows) == 3 * 4 and all(
        row["wins"] for row in rows if row["adapter"] != row["domain"]
    )
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)


def test_a_difference_that_chance_could_make_is_no_win():
    home, away, far = (
        Predictions("test", (), tuple(Prediction(str(n), x, 1.0, 0.0) for n, x in enumerate(each)))
        for each in ([1.0] * 4, [0.0, 1.5, 1.0, 1.6], [2.0] * 4)
    )
    rows = home_wins({"a": {"a": home, "b": away, "c": far}}, resamples=200)
    assert [row.get("difference") for row in rows] == pytest.approx([None, -0.025, -1.0])
    assert [row.get("wins") for row in rows] == [None, False, True]


@pytest.mark.slow
def test_the_three_answer_together_as_they_do_alone(three):
    first = next(iter(three.values()))
    frozen, tokenizer = first.frozen, first.task.tokenizer
    together = TextGenerator(
        first.task.model, frozen, tokenizer, max_adapters=3, max_rank=4, like=first.trainable
    )
    prompts, alone = [], []
    for name, run in three.items():
        together.add(name, run.trainable)
        prompts.append(run.task.records["test"].prompts[0] + "\n")
        alone += TextGenerator(first.task.model, frozen, tokenizer, run.trainable).generate(
            prompts[-1:], max_new=4
        )
    assert together.generate(prompts, max_new=4, adapters=list(three)) == alone


@pytest.mark.slow
def test_adapters_of_another_base_are_refused(three):
    from dataclasses import replace

    first, second = list(three.values())[:2]
    other = replace(
        second, config=replace(second.config, quant=replace(second.config.quant, format="int8"))
    )
    with pytest.raises(
        ValueError, match="'b' was trained on .* in format int8 and 'a' on .* in format nf4"
    ):
        adapter_matrix({"a": first, "b": other})
