"""Every config in configs/ is legal, means what it meant, and takes a step when it is shrunk to a
tiny model.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_language import write_completions, write_tiny_model

from lora_jax import cli
from lora_jax.config import Config, load_config, shipped_configs, to_dict
from lora_jax.config.load import run_file
from lora_jax.sweeps.grid import expand
from lora_jax.sweeps.runner import run_sweep
from lora_jax.sweeps.store import RunStore
from lora_jax.sweeps.tuning import first_round, size

CONFIGS = Path(__file__).parents[1] / "configs"
SPECS = [
    "default.py",
    "rotten_tomatoes.py",
    *(f"rotten_tomatoes.py:{method}" for method in ("lora", "qlora", "head", "full")),
]
LANGUAGE_SPECS = [f"gemma3_completions.py:{task}" for task in ("modes", "sql", "titles")]


# What every config with every argument said at c3174b2, a hash each: settings that differ from the
# defaults, and what loading it prints.
MEANINGS = json.loads((Path(__file__).parent / "golden" / "configs.json").read_text())


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, list) else value


def differing(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What is not as the defaults are; columns of roles that are not named say nothing."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found[key] = differing(value, defaults.get(key) or {})
        elif value != defaults.get(key):
            found[key] = plain(value)
    return {key: value for key, value in found.items() if value != {}}


@pytest.mark.parametrize("name", MEANINGS)
def test_every_config_says_what_it_said(name, capsys):
    defaults, found = to_dict(Config()), {}
    for argument in MEANINGS[name]:
        capsys.readouterr()
        config = load_config(f"{CONFIGS / name}:{argument}" if argument else str(CONFIGS / name))
        said = [differing(to_dict(config), defaults), capsys.readouterr().err]
        text = json.dumps(said, sort_keys=True)
        found[argument] = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert found == MEANINGS[name]


def test_shipped_configs_go_by_name(monkeypatch, tmp_path, capsys):
    names = shipped_configs()
    files = {file for file in CONFIGS.rglob("*.py") if "def get_config" in file.read_text()}
    assert {CONFIGS / f"{name}.py" for name in names} == files
    assert all(len(question) > 20 for question in names.values())
    monkeypatch.chdir(tmp_path)
    assert load_config("sweeps/rank:table18") == load_config(f"{CONFIGS}/sweeps/rank.py:table18")
    with pytest.raises(FileNotFoundError, match="no 'sweeps/rnk'. Nearest: 'sweeps/rank'"):
        load_config("sweeps/rnk")

    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(names) and max(map(len, lines)) <= 100
    assert cli.main(["configs", "default"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Which rank") and said.endswith(f"file: {CONFIGS / 'default.py'}\n")


def test_every_file_is_tested_here():
    assert {path.name for path in CONFIGS.glob("*.py")} - {"common.py"} == {
        spec.partition(":")[0] for spec in [*SPECS, *LANGUAGE_SPECS]
    }


@pytest.mark.parametrize("spec", [*SPECS, *LANGUAGE_SPECS])
def test_the_docstring_names_its_command(spec):
    path = CONFIGS / spec.partition(":")[0]
    assert re.search(
        rf"lora-jax (sweep|train) --config configs/{path.name}", run_file(path).__doc__
    )


@pytest.mark.parametrize("spec", SPECS[2:])
def test_a_shrunk_run_takes_its_steps(spec, tiny, tmp_path):
    shrunk = {
        **tiny,
        "config.out": str(tmp_path),
        "config.sweep.seeds": "0",
        "config.train.total_steps": "2",
    }
    config = load_config(str(CONFIGS / spec), [f"{key}={value}" for key, value in shrunk.items()])
    assert run_sweep(config, quiet=True, say=print).failed == ()
    assert [record.result.steps for record in RunStore(tmp_path).runs()] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("spec", LANGUAGE_SPECS)
def test_a_shrunk_language_run_takes_its_steps(spec, tmp_path):
    shrunk = {
        "model.name": write_tiny_model(tmp_path / "model"),
        "data.name": write_completions(tmp_path / "a.jsonl"),
        "data.max_length": 24,
        "quant.block_size": 16,
        "lora.rank": 2,
        "train.total_steps": 2,
        "out": tmp_path / "runs",
    }
    config = load_config(
        str(CONFIGS / spec), [f"config.{key}={value}" for key, value in shrunk.items()]
    )
    assert run_sweep(config, quiet=True, say=print).failed == ()
    assert [record.result.steps for record in RunStore(tmp_path / "runs").runs()] == [2]


def test_its_tuned_form_varies_one_setting_at_a_time_around_a_centre():
    config = load_config(str(CONFIGS / "default.py:tuned"))
    centre, *others = [run for run in expand(first_round(config)) if run.method != "head"][::3]
    differ = lambda run: [
        run.lora.rank != centre.lora.rank, run.quant.format != centre.quant.format, run.lora.targets != centre.lora.targets,
    ]  # fmt: skip
    assert [sum(differ(run)) for run in others] == [1] * 5 and size(config) == (56, 70)


def test_the_default_grid_is_the_one_the_readme_promises():
    runs = expand(load_config(str(CONFIGS / "default.py")))
    assert len(runs) == 20 and [run.method for run in runs[:2]] == ["full", "head"]
    assert {run.lora.rank for run in runs[2:]} == {1, 4, 16}
    assert {run.quant.format for run in runs[2:]} == {"none", "int8", "nf4"}
    assert {run.lora.targets for run in runs[2:]} == {"query+value", "all-linear"}
