"""Axes over any setting: products, zipped settings, conditions, several bases, and what is
refused.
"""

import pytest

from lora_jax.config import UnknownKeyError, from_config_dict, load_config
from lora_jax.sweeps.axes import read_axis
from lora_jax.sweeps.grid import MOST_CELLS, expand


def runs(*axes, **sweep):
    return expand(from_config_dict({"sweep": {"axes": axes, "rank": (1, 4), **sweep}}))


def test_joint_settings_may_have_one_point():
    assert read_axis("lora.rank, lora.alpha = (1, 2)").points == ((1, 2.0),)
    two = ((1, 2.0), (4, 8.0))
    assert read_axis("lora.rank, lora.alpha = ((1, 2), (4, 8))").points == two
    assert read_axis("lora.rank, lora.alpha = (1, 2), (4, 8)").points == two


def test_axes_multiply():
    made = runs("lora.alpha = 8, 16", "lora.init = kaiming, pissa")
    assert (
        len(made) == 8
        and len({(run.lora.rank, run.lora.alpha, run.lora.init) for run in made}) == 8
    )


def test_settings_of_one_axis_change_together():
    made = runs("lora.alpha, optim.learning_rate = (8, 1e-3), (16, 2e-3), (32, 4e-3)", rank=())
    assert [(run.lora.alpha, run.optim.learning_rate) for run in made] == [
        (8.0, 1e-3),
        (16.0, 2e-3),
        (32.0, 4e-3),
    ]


def test_an_axis_with_a_condition_multiplies_only_the_runs_that_meet_it():
    made = runs("quant.block_size = 32, 64 if quant.format == nf4", format=("none", "int8", "nf4"))
    assert [(run.quant.format, run.quant.block_size) for run in made if run.lora.rank == 1] == [
        ("none", 64),
        ("int8", 64),
        ("nf4", 32),
        ("nf4", 64),
    ]
    later = runs(
        "lora.init = kaiming, pissa",
        "lora.alpha = 1, 2 if lora.init != kaiming and lora.rank in (4, 8)",
    )
    assert [(run.lora.rank, run.lora.init, run.lora.alpha) for run in later] == [
        (1, "kaiming", 16.0), (1, "pissa", 16.0), (4, "kaiming", 16.0), (4, "pissa", 1.0), (4, "pissa", 2.0),
    ]  # fmt: skip


@pytest.mark.parametrize("said", ["ffn", "mlp", r"layers(_\d+)?/mlp/(gate|up|down)/kernel"])
def test_a_condition_on_targets_holds_for_their_name_and_their_regex(said):
    made = runs(f"lora.alpha = 1, 2 if lora.targets == {said}", targets=("ffn=mlp", "attention"))
    assert [run.lora.alpha for run in made if run.lora.rank == 1] == [1.0, 2.0, 16.0]


def test_several_bases_and_formats_are_axes_like_others():
    made = runs("model.name = minilm-l6, ./mine", "quant.format = none, nf4", rank=())
    assert [(run.model.name, run.method) for run in made] == [
        ("minilm-l6", "lora"), ("minilm-l6", "qlora"), ("./mine", "lora"), ("./mine", "qlora"),
    ]  # fmt: skip


def test_a_run_that_does_not_read_an_axis_is_not_multiplied():
    made = runs("lora.alpha = 8, 16", baselines=("head",), rank=())
    assert [run.method for run in made] == ["head", "lora", "lora"]


def test_axes_can_be_given_on_the_command_line(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("def get_config():\n    return dict(sweep=dict(rank=(1, 2)))\n")
    config = load_config(
        str(file), ["--config.sweep.axes='lora.alpha = 8, 16','optim.weight_decay = 0.0, 0.1'"]
    )
    assert len(expand(config)) == 8


@pytest.mark.parametrize(
    ("axis", "error", "words"),
    [
        ("lora.rnk = 1, 2", UnknownKeyError, "no setting lora.rnk .*Nearest: lora.rank"),
        ("lora.rank", ValueError, "an axis reads 'KEY = value, value'"),
        ("lora.rank = one", TypeError, "needs a whole number, got 'one'"),
        ("lora.rank, lora.alpha = (1, 2), 3", ValueError, "'3' has 1 values"),
        ("lora.alpha = 1, 2 if rank", ValueError, "a condition reads"),
        ("sweep.rank = 1, 2", ValueError, "no axis of a sweep"),
        ("method = lora, full", ValueError, "Use sweep.baselines"),
        (
            "train.log_every = 1, 2",
            ValueError,
            "changes no run: runs of method lora do not read train.log_every",
        ),
        (
            "quant.block_size = 32, 64",
            ValueError,
            "runs of method lora do not read quant.block_size",
        ),
        ("lora.alpha = 1, 2 if lora.rank == 64", ValueError, "no run meets the condition"),
        ("lora.alpha = 0, 1", ValueError, "config.lora.alpha must be above 0, got 0.0"),
        (
            "train.accumulate = 1, 3",
            ValueError,
            "The grid has a run that is not legal.*accumulate must divide",
        ),
    ],
)
def test_what_is_no_axis_is_an_error_that_says_what_to_write(axis, error, words):
    with pytest.raises(error, match=words):
        runs(axis)


def test_a_setting_in_two_axes_is_refused():
    with pytest.raises(ValueError, match="lora.alpha stands in two axes"):
        runs("lora.alpha = 1, 2", "lora.alpha, lora.init = (3, pissa), (4, olora)")


def test_a_grid_of_a_million_cells_is_refused_before_it_is_made():
    many = ", ".join(map(str, range(1, 1001)))
    with pytest.raises(
        ValueError,
        match=f"at most {MOST_CELLS:,} runs, and this grid has 2,000,000 cells.*1000 .optim.weight_decay",
    ):
        runs(f"lora.alpha = {many}", f"optim.weight_decay = {many}")
    with pytest.raises(
        ValueError, match="2,000,000 cells: 1 .format. x 1 .targets. x 2 .rank. x 1000000 .seeds."
    ):
        runs(seeds=tuple(range(1_000_000)))


def test_an_axis_knows_its_text_and_points():
    axis = read_axis("lora.targets = query+value, 'layers/(q|v)/kernel'")
    assert axis.points == (("query+value",), ("layers/(q|v)/kernel",)) and axis.keys == (
        "lora.targets",
    )
