"""Every config in configs/ is legal, and takes a step when it is shrunk to a tiny model."""

import importlib.util
import re
from pathlib import Path

import pytest
from tiny_language import write_completions, write_tiny_model

from lora_jax.config import load_config
from lora_jax.sweeps.grid import expand
from lora_jax.sweeps.runner import run_sweep
from lora_jax.sweeps.store import RunStore

CONFIGS = Path(__file__).parents[1] / "configs"
SPECS = [
    "default.py",
    "rotten_tomatoes.py",
    *(f"rotten_tomatoes.py:{method}" for method in ("lora", "qlora", "head", "full")),
]
LANGUAGE_SPECS = [f"gemma3_completions.py:{task}" for task in ("modes", "sql", "titles")]


def test_every_file_is_tested_here():
    assert {path.name for path in CONFIGS.glob("*.py")} == {
        spec.partition(":")[0] for spec in [*SPECS, *LANGUAGE_SPECS]
    }


@pytest.mark.parametrize("spec", [*SPECS, *LANGUAGE_SPECS])
def test_the_docstring_names_its_command(spec):
    path = CONFIGS / spec.partition(":")[0]
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    assert re.search(rf"lora-jax (sweep|train) --config configs/{path.name}", module.__doc__)


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


def test_the_default_grid_is_the_one_the_readme_promises():
    runs = expand(load_config(str(CONFIGS / "default.py")))
    assert len(runs) == 20 and [run.method for run in runs[:2]] == ["full", "head"]
    assert {run.lora.rank for run in runs[2:]} == {1, 4, 16}
    assert {run.quant.format for run in runs[2:]} == {"none", "int8", "nf4"}
    assert {run.lora.targets for run in runs[2:]} == {"query+value", "all-linear"}
