"""The presets of configs/sweeps are legal, name their command, and have the runs that their
docstrings promise.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from lora_jax.config import load_config
from lora_jax.config.load import run_file
from lora_jax.sweeps.grid import expand
from lora_jax.sweeps.search import read_space

PRESETS = Path(__file__).parents[1] / "configs" / "sweeps"
COUNTS = {
    "rank.py": 45, "rank.py:table6": 45, "rank.py:table18": 27, "rank.py:figure4": 18, "targets.py:table5": 21, "targets.py:figure2": 15,
    "bits.py": 30, "blocksize.py": 45, "learning_rate.py": 69, "initialisation.py:fp32": 21, "initialisation.py:quantised": 18,
    "factors.py": 180,
}  # fmt: skip


def runs_of(spec):
    return expand(load_config(str(PRESETS / spec)))


def docstring(file):
    return run_file(file).__doc__


def test_every_preset_is_tested_here():
    assert {path.name for path in PRESETS.glob("*.py")} == {
        spec.partition(":")[0] for spec in COUNTS
    } | {"search.py"}


@pytest.mark.parametrize("spec", COUNTS)
def test_a_preset_has_the_runs_that_it_promises(spec):
    runs = runs_of(spec)
    assert len(runs) == COUNTS[spec]
    assert {run.train.seed for run in runs} == {0, 1, 2}
    assert f"{COUNTS[spec]} runs" in docstring(PRESETS / spec.partition(":")[0])
    assert {(run.model.name, run.data.name) for run in runs} == {("minilm-l6", "rotten_tomatoes")}


@pytest.mark.parametrize("file", sorted(PRESETS.glob("*.py")), ids=lambda path: path.name)
def test_the_docstring_names_its_command_and_what_to_expect(file):
    text = docstring(file)
    assert (
        re.search(rf"lora-jax sweep --config configs/sweeps/{file.name}", text)
        and "Expect: " in text
    )


def test_table_6_crosses_rank_and_targets():
    cells = {(run.lora.rank, run.lora.targets) for run in runs_of("rank.py:table6")}
    assert len(cells) == 15 and {rank for rank, _ in cells} == {1, 2, 4, 8, 64}


def test_table_5_spends_one_budget():
    """Rank times the number of matrices is 8 in every cell, as in the paper."""
    matrices = {r"(q|k)": 2, "query+value": 2, "attention": 4}
    for run in runs_of("targets.py:table5"):
        many = next((count for name, count in matrices.items() if name in run.lora.targets), 1)
        assert run.lora.rank * many == 8


def test_double_quantisation_is_varied_where_there_are_four_bits():
    seen = Counter((run.quant.format, run.quant.double) for run in runs_of("bits.py"))
    assert seen == {("none", True): 3, ("int8", True): 3} | {
        (name, double): 3 for name in ("int4", "fp4", "fp4_e2m1", "nf4") for double in (True, False)
    }


def test_each_method_has_its_own_rates():
    rates = {
        method: {
            run.optim.learning_rate for run in runs_of("learning_rate.py") if run.method == method
        }
        for method in ("lora", "full")
    }
    assert rates == {
        "lora": {1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2},
        "full": {1e-5, 3e-5, 1e-4, 3e-4, 1e-3},
    }


def test_the_search_has_a_space_that_can_be_read():
    config = load_config(str(PRESETS / "search.py"))
    assert [dimension.key for dimension in read_space(config)] == [
        "optim.learning_rate",
        "lora.rank",
        "lora.alpha",
        "lora.dropout",
        "lora.targets",
    ]
    assert f"{config.sweep.search.trials} trials" in docstring(PRESETS / "search.py")


def test_an_argument_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match="table6, table18, figure4"):
        load_config(f"{PRESETS / 'rank.py'}:table7")
