"""The notebook on language models runs on a tiny model, and keeps no outputs."""

import importlib
import json
import re
from pathlib import Path

from tiny_language import write_completions, write_tiny_model

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "3_finetune_a_language_model.ipynb"


def test_the_notebook_runs_and_is_stripped(tmp_path, monkeypatch, capsys):
    cells = [
        cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.setenv("LORA_JAX_NOTEBOOK_MODEL", str(write_tiny_model(tmp_path / "tiny")))
    monkeypatch.setenv("LORA_JAX_NOTEBOOK_DATA", str(write_completions(tmp_path / "a.jsonl", 64)))
    monkeypatch.setenv("LORA_JAX_NOTEBOOK_STEPS", "20")
    names: dict[str, object] = {}
    for cell in cells:
        source = "".join(cell["source"]).replace(
            "learning_rate=1e-3", "learning_rate=2e-2"
        )  # a tiny model needs larger steps
        exec(compile(source, NOTEBOOK.name, "exec"), names)
    assert names["after"] < names["before"]
    assert "adapted:" in capsys.readouterr().out


def test_the_notebook_names_nothing_that_is_not_public():
    for dotted in set(re.findall(r"\blora_jax((?:\.\w+)+)", NOTEBOOK.read_text())):
        *packages, name = dotted.removeprefix(".").split(".")
        assert hasattr(importlib.import_module(".".join(["lora_jax", *packages])), name), dotted
