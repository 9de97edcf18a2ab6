"""Notebooks keep what they gave: small, whole, and of no machine. The one on language models runs on a
tiny model.
"""

import base64
import importlib
import json
import re
from pathlib import Path

import pytest
from tiny_language import write_completions, write_tiny_model

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WITH_OUTPUTS = [path for path in NOTEBOOKS if path.name[0] in "1245"]
KEPT = {"stream", "display_data", "execute_result"}
OF_A_MACHINE = re.compile(r"/(?:tmp|home|root|work|usr)/|Warning\b|Traceback")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def run(path: Path, **parameters: object) -> dict[str, object]:
    """The names that the cells give; a parameter has its value after the cell that sets it."""
    names: dict[str, object] = {}
    for cell in code_cells(path):
        lines = [line for line in cell["source"] if not line.startswith("%")]
        exec(compile("".join(lines), path.name, "exec"), names)
        names.update((name, value) for name, value in parameters.items() if name in names)
    return names


@pytest.mark.parametrize("path", WITH_OUTPUTS, ids=lambda path: path.stem)
def test_a_notebook_keeps_what_it_gave(path):
    content = json.loads(path.read_text())
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    assert content["metadata"]["language_info"] == {"name": "python"}
    assert path.stat().st_size < 300_000
    for number, cell in enumerate(code_cells(path), start=1):
        # Run once, from the first cell to the last.
        assert cell["execution_count"] == number
        assert {out["output_type"] for out in cell["outputs"]} <= KEPT
        pictures = [out["data"]["image/png"] for out in cell["outputs"] if "data" in out]
        assert all(len(base64.b64decode(picture)) < 80_000 for picture in pictures)
        assert len(pictures) == len(re.findall(r"plt\.subplots\(|\.figure\(", str(cell["source"])))
        text = "".join(sum((out.get("text", []) for out in cell["outputs"]), []))
        assert not OF_A_MACHINE.search(text)


@each_notebook
def test_a_notebook_has_exercises_and_says_how_to_install(path):
    assert "".join(code_cells(path)[0]["source"]).startswith("# On Colab")
    assert "os.environ" not in path.read_text()
    text = "".join(sum((cell["source"] for cell in json.loads(path.read_text())["cells"]), []))
    assert "## Exercises" in text and "Solutions follow." in text and "$" in text


def test_the_notebook_on_language_models_runs(tmp_path, capsys):
    names = run(
        FOLDER / "3_finetune_a_language_model.ipynb",
        MODEL=str(write_tiny_model(tmp_path / "tiny")),
        DATA=str(write_completions(tmp_path / "a.jsonl", 64)),
        STEPS=20,
        TOKENS=64,
        SENTENCE="ab",
        LEARNING_RATE=2e-2,  # a tiny model needs larger steps
        HELD_OUT=6,
    )
    assert names["difference"]["loss"]["high"] < 0
    assert "adapted:" in capsys.readouterr().out


@each_notebook
def test_a_notebook_names_nothing_that_is_not_public(path):
    text = path.read_text()
    dotted = {f"{a}.{b}" for a, b in re.findall(r"from (lora_jax[\w.]*) import (\w+)", text)}
    for name in dotted | set(re.findall(r"\blora_jax(?:\.\w+)+", text)):
        value: object = importlib.import_module("lora_jax")
        for part in name.split(".")[1:]:
            public = getattr(value, "__all__", None)
            assert public is None or part in public, name
            value = getattr(value, part)
