"""The README's commands and code are real."""

import ast
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest

import lora_jax
from lora_jax import cli
from lora_jax.config import SweepConfig, load_config, to_dict
from lora_jax.core import variants
from lora_jax.sweeps.grid import expand
from lora_jax.sweeps.store import RunStore
from lora_jax.sweeps.tuning import first_points

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_its_python_trains_saves_loads_and_merges(tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    code, own_loop, own_optimiser, own_nnx, own_variant = blocks("python")
    names = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    assert lora_jax.find_sites(names["model"], names["x"])["up/kernel"].shape == (128, 256)
    x, label = names["x"], names["x"].argmax(1) % 4
    before = names["loss"](
        names["frozen"], names["state"].trainable, {"x": x, "label": label}, None
    )
    after = optax.softmax_cross_entropy_with_integer_labels(
        names["model"].apply({"params": names["merged"]}, x), label
    ).mean()
    # Sums in another order.
    assert float(before) == pytest.approx(float(after), abs=1e-5) and float(after) < 0.5 * math.log(
        4
    )
    exec(compile(own_loop, "README.md", "exec"), names)
    assert names["result"].value("validation") > 0.5
    exec(compile(own_optimiser, "README.md", "exec"), names)
    other = dict(names)
    exec(compile(own_nnx, "README.md", "exec"), other)
    assert other["value"] < 0.5 * math.log(4) and jnp.allclose(
        other["plain"](x), other["adapted"](x), atol=1e-5
    )

    # Its sweep is of a smaller model here.
    settings = {**tiny, "config.out": "runs/own"}
    small = load_config(f"{ROOT}/configs/default.py", [f"{k}={v}" for k, v in settings.items()])
    file = Path("configs/rotten_tomatoes.py")
    file.parent.mkdir()
    file.write_text(
        f"def get_config():\n    return {to_dict(replace(small, sweep=SweepConfig()))}\n"
    )
    try:
        exec(compile(own_variant, "README.md", "exec"), names)
    finally:
        assert variants.VARIANTS.pop("cosine").fixed == ("a",)
    assert names["metrics"]["loss"] < 0.5 * math.log(4) and names["report"].change
    found = [run.config["lora"]["variant"] for run in RunStore("runs/own").runs() if run.result]
    assert sorted(found) == ["cosine", "lora"]
    assert "cosine" in Path("runs/own/report/report.md").read_text()


def commands(text: str) -> list[str]:
    """What follows `lora-jax` in each line of a shell, lines that end in a backslash joined."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [
        re.sub(r".*?lora-jax ", "", line.split("  ")[0]) for line in lines if "lora-jax" in line
    ]


def docstring_of(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text())) or ""


README = commands("\n".join(blocks("bash")))
# A command is a line of its own, which may go on after a backslash.
PAGES = {
    f"{file.stem}: {command}": command
    for file in sorted((ROOT / "docs" / "pages").rglob("*.md"))
    for command in commands(
        "\n".join(re.findall(r"```bash\n(.*?)```", file.read_text(), re.DOTALL))
    )
}
DOCSTRINGS = {
    f"{file.relative_to(ROOT)}: {command}": command
    for file in sorted((ROOT / "configs").rglob("*.py"))
    for line in re.findall(r"^lora-jax (?:.*\\\n)*.*", docstring_of(file), re.M)
    for command in commands(line)
}


def test_every_command_of_a_docstring_is_found():
    for file in (ROOT / "configs").rglob("*.py"):
        found = [one for one in DOCSTRINGS if one.startswith(f"{file.relative_to(ROOT)}: ")]
        assert found or "def get_config" not in file.read_text(), f"{file} names no command"


@pytest.mark.parametrize(
    "line", [*README, *PAGES.values(), *DOCSTRINGS.values()], ids=[*README, *PAGES, *DOCSTRINGS]
)
def test_commands_have_options_files_and_settings_that_exist(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, parsed = cli.parse(shlex.split(line, comments=True))
    if "--config" in line:
        config = load_config(parsed.config, parsed.overrides)
        runs = first_points if config.sweep.tune.factors else expand
        assert config.sweep.search.trials or runs(config)


@pytest.mark.parametrize(
    "line", [line for line in README if line.startswith("sweep") and ".csv" not in line]
)
def test_its_sweeps_can_be_planned(line, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    words = [*shlex.split(line, comments=True), f"--config.out={tmp_path}", "--dry-run"]
    assert cli.main(words) == 0
    assert re.search(r"\d+ (runs|trials)", capsys.readouterr().out)


def test_ci_runs_the_commands_that_it_gives():
    script = (ROOT / ".ci" / "run").read_text()
    assert (
        re.search(r'pip install --quiet -e "\.\[test\]" && pytest', script)
        and 'pip install -e ".[test]" && pytest' in TEXT
    )
    assert "lora-jax sweep --config default:tuned" in script
    assert "lora-jax sweep --config default:tuned" in TEXT


@pytest.mark.parametrize(
    "file",
    re.findall(
        r"`((?:notebooks|experiments|configs|lora_jax|tests)/[^`]*)`|`(ARCHITECTURE\.md)`", TEXT
    ),
)
def test_the_files_that_it_names_exist(file):
    assert (ROOT / (file[0] or file[1])).exists()
