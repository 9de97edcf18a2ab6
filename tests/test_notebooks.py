"""The notebook on language models runs on a tiny model; the first and those on sweeps and on updates
keep what they gave, small, whole and of no machine, and no other keeps outputs.
"""

import base64
import importlib
import json
import re
from pathlib import Path

import pytest
from tiny_language import write_completions, write_tiny_model

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOK = FOLDER / "3_finetune_a_language_model.ipynb"
WITH_OUTPUTS = [path for path in sorted(FOLDER.glob("*.ipynb")) if path.name[0] in "145"]
KINDS = {"stream", "display_data", "execute_result"}
OF_A_MACHINE = re.compile(r"/(?:tmp|home|root|work|usr)/|Warning\b|Traceback")


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize(
    "path", sorted(set(FOLDER.glob("*.ipynb")) - set(WITH_OUTPUTS)), ids=lambda path: path.stem
)
def test_a_notebook_is_stripped(path):
    cells = code_cells(path)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.parametrize("path", WITH_OUTPUTS, ids=lambda path: path.stem)
def test_a_notebook_keeps_what_it_gave(path):
    content = json.loads(path.read_text())
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    assert path.stat().st_size < 300_000
    for number, cell in enumerate(code_cells(path), start=1):
        # Run once, from the first cell to the last.
        assert cell["execution_count"] == number
        assert {out["output_type"] for out in cell["outputs"]} <= KINDS
        pictures = [out["data"]["image/png"] for out in cell["outputs"] if "data" in out]
        assert all(len(base64.b64decode(picture)) < 80_000 for picture in pictures)
        drawn = re.findall(r"plt\.subplots\(|sweeps\.figure\(", "".join(cell["source"]))
        assert len(pictures) == len(drawn)
        text = "".join(sum((out.get("text", []) for out in cell["outputs"]), []))
        assert not OF_A_MACHINE.search(text)


def test_the_notebook_on_language_models_runs(tmp_path, monkeypatch, capsys):
    cells = code_cells(NOTEBOOK)
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
