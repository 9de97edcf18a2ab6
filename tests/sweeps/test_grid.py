"""A sweep expands into runs whose ids depend on their content alone."""

from dataclasses import replace

import pytest

from lora_jax.config import Config, SweepConfig, from_config_dict, to_dict
from lora_jax.sweeps.grid import expand, run_id

GRID = replace(
    Config(),
    sweep=SweepConfig(
        rank=(1, 4, 16),
        format=("none", "int8", "nf4"),
        targets=("query+value", "all-linear"),
        seeds=(0, 1),
        baselines=("full", "head"),
    ),
)


def test_the_default_grid_is_baselines_and_the_product_of_its_axes():
    runs = expand(GRID)
    assert len(runs) == 2 * 2 + 3 * 3 * 2 * 2
    assert [run.method for run in runs[:4]] == ["full", "full", "head", "head"]
    assert {run.method for run in runs if run.quant.format == "none"} == {"full", "head", "lora"}
    assert {run.method for run in runs if run.quant.format != "none"} == {"qlora"}
    formats = [run.quant.format for run in runs[4:]]
    assert formats == sorted(
        formats, key=("none", "int8", "nf4").index
    )  # runs of one format stand together


def test_every_run_has_an_id_of_its_own_that_a_round_trip_keeps():
    runs = expand(GRID)
    ids = [run_id(run) for run in runs]
    assert len(set(ids)) == len(ids)
    assert [run_id(from_config_dict(to_dict(run))) for run in runs] == ids


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("out", {"out": "elsewhere"}),
        ("log_every", {"train": {"log_every": 3}}),
        ("checkpoint_every", {"train": {"checkpoint_every": 7}}),
    ],
)
def test_settings_that_change_no_result_leave_the_id(key, change):
    assert run_id(from_config_dict(change)) == run_id(Config()), key


@pytest.mark.parametrize(
    "change",
    [
        {"lora": {"rank": 4}},
        {"lora": {"alpha": 8.0}},
        {"train": {"seed": 1}},
        {"optim": {"learning_rate": 1e-4}},
        {"data": {"max_length": 64}},
    ],
)
def test_settings_that_change_results_change_the_id(change):
    assert run_id(from_config_dict(change)) != run_id(Config())


def test_a_name_of_targets_and_its_regex_are_one_run():
    named = from_config_dict({"lora": {"targets": "query+value"}})
    spelled = from_config_dict({"lora": {"targets": r"layers(_\d+)?/attn/(q|v)/kernel"}})
    assert run_id(named) == run_id(spelled)


def test_equal_runs_occur_once_and_each_method_has_its_learning_rate():
    config = from_config_dict(
        {
            "sweep": {
                "rank": (2, 2),
                "baselines": ("head",),
                "learning_rate": {"head": 0.5, "lora": 0.25},
            },
            "optim": {"learning_rate": 1e-3},
        }
    )
    assert [(run.method, run.optim.learning_rate) for run in expand(config)] == [
        ("head", 0.5),
        ("lora", 0.25),
    ]
