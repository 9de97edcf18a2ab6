"""Configs of published data sets read the true schemas (mocked or written out here), and those of
recipes train when shrunk.
"""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_encoder import save_tiny_encoder
from tiny_language import write_tiny_model
from tiny_tasks import write_task

from lora_jax.config import load_config
from lora_jax.data.completions import to_completions
from lora_jax.sweeps.runner import run_sweep
from lora_jax.sweeps.store import RunStore
from lora_jax.tasks.reading import examples_of, recipe_of

CONFIGS = Path(__file__).parents[1] / "configs"
GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
TFDS = {"e2e": "gem/e2e_nlg", "webnlg": "gem/web_nlg_en", "dart": "gem/dart"}
# One published record of each data set on the hub, as its files have them.
HUB: dict[str, dict[str, Any]] = {
    "alpaca": {
        "instruction": "Name a colour {n}.",
        "input": "",
        "output": "Red.",
        "text": "Below is ...",
    },
    "samsum": {"id": "1{n}", "dialogue": "Ann: Hi {n}\nBob: Hello", "summary": "Ann greets Bob."},
    "wikisql": {
        "phase": 1,
        "question": "Who scored {n}?",
        "table": {
            "header": ["Player", "Goals"],
            "types": ["text", "real"],
            "rows": [["Bob", "3"]],
            "name": "t",
        },
        "sql": {
            "human_readable": "SELECT Player FROM table WHERE Goals = 3",
            "sel": 0,
            "agg": 0,
            "conds": {"column_index": [1]},
        },
    },
    "oasst1": {"text": "### Human: Hi {n}### Assistant: Hello"},
    "flan": {"inputs": "Is it {n}?", "targets": "yes", "task": "boolq"},
}
FILES = {"my_data", "glue", "multitask", *TFDS, *HUB}


def load(name: str, **changes: Any) -> Any:
    return load_config(
        str(CONFIGS / "tasks" / name), [f"config.{key}={value}" for key, value in changes.items()]
    )


def test_every_file_is_tested_here():
    assert {path.stem for path in (CONFIGS / "tasks").glob("*.py")} == FILES


@pytest.fixture
def mocking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    import tensorflow_datasets as tfds

    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path))
    return tfds.testing


@pytest.mark.parametrize("task", GLUE)
def test_glue_is_read_with_its_own_classes_and_metrics(task, mocking):
    data = load(f"glue.py:{task}").data
    with mocking.mock_data(num_examples=40):
        examples = examples_of(data)
    assert all(len(part) == 40 for part in examples.splits.values())
    names = {
        "mnli": ("entailment", "neutral", "contradiction"),
        "stsb": (),
        "mrpc": ("not_equivalent", "equivalent"),
    }
    if task in names:
        assert examples.label_names == names[task]
    assert recipe_of(data).metrics[0] == {"cola": "matthews", "stsb": "pearson"}.get(
        task, "accuracy"
    )
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", TFDS)
def test_generation_sets_are_read_with_all_references(name, mocking):
    data = load(f"{name}.py").data
    assert data.name == TFDS[name]
    with mocking.mock_data(num_examples=20):
        parts = to_completions(examples_of(data))
    assert all(len(part) == 20 for part in parts.values())
    assert parts["test"].references != tuple((text,) for text in parts["test"].completions)
    recipe = recipe_of(data)
    assert recipe.decoding.beams == 10 and recipe.decoding.length_penalty == {"e2e": 0.9}.get(
        name, 0.8
    )


@pytest.mark.parametrize("name", HUB)
def test_hub_sets_are_read_from_the_layout_of_the_hub(name, tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [json.loads(json.dumps(HUB[name]).replace("{n}", str(n))) for n in range(80)]
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        parquet.write_table(
            pyarrow.Table.from_pylist(rows if split == "train" else rows[:9]),
            tmp_path / "data" / f"{split}-00000-of-00001.parquet",
        )
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda repository, **options: asked.update(options, name=repository) or str(tmp_path),
    )
    data = load(f"{name}.py").data
    parts = to_completions(examples_of(data), prompt=data.prompt, completion=data.completion)
    assert f"hf:{asked['name']}" == data.name and asked["repo_type"] == "dataset"
    assert len(parts["test"]) == 9 and len(parts["train"]) + len(parts["validation"]) == 80
    wanted = {
        "wikisql": ("Who scored 0?", "SELECT Player FROM table WHERE Goals = 3"),
        "alpaca": ("### Instruction:\nName a colour 0.\n\n### Response:", "Red."),
        "oasst1": ("", "### Human: Hi 0### Assistant: Hello"),
    }
    prompt, completion = wanted.get(name, ("", ""))
    assert prompt in parts["test"].prompts[0] and completion in parts["test"].completions[0]


def test_an_unreachable_hub_and_a_wrong_folder_are_one_paragraph(monkeypatch, tmp_path):
    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        FileNotFoundError, match="'tatsu-lab/alpaca' is not in the local cache.*no route"
    ):
        examples_of(load("alpaca.py").data)
    (tmp_path / "plain_text").mkdir()
    (tmp_path / "plain_text" / "train.jsonl").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder 'plain_txt'. Nearest: 'plain_text'"):
        examples_of(load("alpaca.py", **{"data.name": "hf:org/name/plain_txt"}).data)
    with pytest.raises(ValueError, match="named 'hf:org/name'"):
        examples_of(load("alpaca.py", **{"data.name": "hf:a/b/c/d"}).data)


def shrink(spec: str, model: Path, data: Path, out: Path, **more: Any) -> None:
    values = {
        "model.name": model,
        "data.name": data,
        "data.max_length": 24,
        "lora.rank": 2,
        "train.total_steps": 2,
        "out": out,
    } | more
    assert run_sweep(load(spec, **values), quiet=True, say=print).failed == ()
    assert [record.result.steps for record in RunStore(out).runs()] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pair_classification", "multiple_choice"])
def test_your_own_records_train_an_encoder(recipe, tmp_path):
    data = write_task(tmp_path / "a.jsonl", recipe, 60)
    shrink(f"my_data.py:{recipe}", save_tiny_encoder(tmp_path / "model"), data, tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["classification@decoder"])
def test_your_own_records_train_a_decoder(recipe, tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text(
        "\n".join(
            json.dumps({"text": f"ab{n}", "summary": "ba", "label": "xy"[n % 2]}) for n in range(60)
        )
    )
    shrink(
        f"my_data.py:{recipe}",
        write_tiny_model(tmp_path / "model"),
        data,
        tmp_path / "runs",
        **{"quant.block_size": 16},
    )


def test_unknown_arguments_are_refused():
    for spec in ("my_data.py:haiku", "my_data.py:summarisation@decoder", "glue.py:sst3"):
        with pytest.raises(ValueError, match="the argument must be one of"):
            load(spec)


def test_the_shared_adapter_has_the_size_of_the_three():
    shared, apart = (
        load("multitask.py:shared"),
        [load(f"multitask.py:{name}") for name in ("sql", "titles", "modes")],
    )
    assert [part.name for part in shared.data.mixture] == [config.data.name for config in apart]
    assert shared.lora.rank == sum(config.lora.rank for config in apart)
    assert shared.lora.alpha / shared.lora.rank == apart[0].lora.alpha / apart[0].lora.rank
    assert shared.train.total_steps == sum(config.train.total_steps for config in apart)
