"""A memory budget: what is chosen fits by the compiler's account, changes as little as it can, and
says why; nothing fits is an error.
"""

import json
import subprocess
import sys

import jax.numpy as jnp
import pytest
from tiny_encoder import save_tiny_encoder
from tiny_tasks import write_task

from lora_jax.config import config_hash, from_config_dict
from lora_jax.tasks.opening import open_task
from lora_jax.training.compile import Memory, Program
from lora_jax.training.memory import estimate, fit_budget, parse_bytes
from lora_jax.training.programs import Programs, lanes_for
from lora_jax.training.slots import Slots

NOTHING = lambda: (0, 0)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    return {
        "model": {"name": str(save_tiny_encoder(folder / "model"))},
        "data": {
            "name": str(write_task(folder / "a.jsonl", "classification")),
            "recipe": "classification",
            "max_length": 24,
        },
        "method": "lora",
        "lora": {"rank": 2},
        "quant": {"block_size": 8, "double": False},
        "train": {"total_steps": 2, "batch_size": 4, "eval_batch_size": 64},
    }


def fitted(settings):
    config = from_config_dict(settings)
    return fit_budget(config, open_task(config), resident=NOTHING)


@pytest.mark.long
def test_the_least_change_that_fits_is_chosen(settings):
    config = from_config_dict(settings)
    as_is = estimate(config, open_task(config), NOTHING)
    fit = lambda size: fitted(settings | {"memory_budget": f"{size}B"})
    chosen, said = fit(as_is)
    assert (chosen, len(said)) == (config, 1) and said[0].startswith(
        "chosen: format none, batch 4 in 1 part, blocks kept"
    )
    chosen, said = fit(as_is - 1)
    assert (
        chosen.quant.format == "none" and chosen.model.remat and chosen.train.eval_batch_size <= 4
    )
    assert estimate(chosen, open_task(config), NOTHING) < as_is and "would need" in said[0]


@pytest.mark.long
def test_nothing_that_fits_is_an_error_with_the_least_that_was_found(settings):
    with pytest.raises(
        ValueError,
        match=r"config.memory_budget is 0 MiB, and the least .* \(format (none|int8|nf4), batch 4 in 4 parts",
    ):
        fitted(settings | {"memory_budget": "1KB"})


def test_other_methods_keep_their_format(settings):
    with pytest.raises(ValueError, match="the least that was found"):
        fitted(settings | {"method": "full", "memory_budget": "1KB"})


@pytest.mark.long
def test_a_run_stays_under_its_budget_and_its_steps_are_compiled_once(tmp_path):
    """MiniLM, for which the run as configured is too large: the first choice that fits is taken,
    and the process stays below.
    """
    folder, budget = tmp_path / "run", 1_500_000_000
    options = [
        f"--config.memory_budget={budget}B",
        "--config.train.total_steps=8",
        f"--config.out={folder}",
        "--quiet",
    ]
    command = [
        sys.executable,
        "-m",
        "lora_jax",
        "train",
        "--config",
        "configs/rotten_tomatoes.py:lora",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])
    assert "would need" in done.stderr and "memory: chosen:" in done.stderr
    assert 0.5 * budget < result["peak_rss_bytes"] < budget and result["compile_seconds"] == 0


def test_a_budget_is_no_part_of_a_runs_identity(settings):
    assert config_hash(from_config_dict(settings)) == config_hash(
        from_config_dict(settings | {"memory_budget": "8GiB"})
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("1.5 GB", 1_500_000_000), ("800MB", 800_000_000), ("4096", 4096)],
)
def test_sizes_are_read_with_their_units(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "two", "-1GB", "2XB", "GiB"])
def test_what_is_no_size_is_an_error(text):
    with pytest.raises(ValueError, match="a size such as 2GiB"):
        parse_bytes(text)


def test_a_run_beside_others_is_charged_the_base_and_its_own_share_of_the_states():
    step = Program(lambda state: state)
    slots = Slots(Programs(step, step, 4))
    slots.frozen = {"w": jnp.zeros(100, jnp.float32)}
    assert slots.peak_bytes() is None
    slots._largest = Memory(arguments=400 + 4 * 30, new_results=4 * 2, temporaries=1000)
    assert slots.peak_bytes() == 400 + 30 + 2 + 1000 // lanes_for(4)
