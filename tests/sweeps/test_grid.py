"""A sweep expands into runs whose ids depend on their content alone."""

from dataclasses import replace

import pytest

from lora_jax.config import Config, SweepConfig, from_config_dict, load_config, to_dict
from lora_jax.sweeps.grid import expand, names_of_targets, run_id, shown_targets

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


FFN = r"layers(_\d+)?/mlp/(up|down){1,1}/kernel"


@pytest.mark.parametrize(
    "override",
    [
        None,
        f"config.sweep.targets=ffn={FFN}, att=attention, all-linear",
        f"config.sweep.axes=lora.targets = ffn={FFN}, att=attention, all-linear",
    ],
)
def test_named_targets_are_said_alike_everywhere_and_leave_ids(tmp_path, override):
    file = tmp_path / "c.py"
    sets = dict(ffn=FFN, att="attention") | {"all-linear": "all-linear"}
    held = f"import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict(dict(sweep=dict(targets={sets!r})))"
    file.write_text(held if override is None else "def get_config():\n    return dict()\n")
    named = expand(load_config(str(file), [override] if override else []))
    assert {shown_targets(run.lora.targets) for run in named} == {"ffn", "att", "all-linear"}
    assert [from_config_dict(to_dict(run)) for run in named] == named

    plain = from_config_dict({"sweep": {"targets": (FFN, "attention", "all-linear")}})
    assert set(map(run_id, named)) == set(map(run_id, expand(plain)))
    over = load_config(str(file), ["config.sweep.axes=()", "config.sweep.targets=mlp"])
    assert over.sweep.targets == ("mlp",)


def test_a_name_is_one_set_in_a_sweep_and_in_a_report():
    with pytest.raises(ValueError, match="of one name must be one set in a sweep, but 'mlp'"):
        expand(from_config_dict({"sweep": {"targets": ("mlp", "mlp=a/kernel")}}))
    wrong = ({"q v": "mlp"}, {"a": 3}, {"a": ("mlp",)}, {"": "mlp"})
    for sets in wrong:
        with pytest.raises((TypeError, ValueError), match="config.sweep.targets: "):
            from_config_dict({"sweep": {"targets": sets}})
    spelled = ("mlp", "ffn=mlp", "feed=mlp", "x=a/q", "a/q", "attention=a/k", "attention")
    assert list(names_of_targets(spelled).values()) == [
        "feed",
        "x",
        "attention (a/k)",
        r"attention (layers(_\d+)?/attn/(q|k|v|o)/kernel)",
    ]


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
