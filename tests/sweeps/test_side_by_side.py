"""Packs of a sweep: who stands beside whom, how many at a time, in which order, and why not."""

from dataclasses import replace

import pytest

from lora_jax.config import from_config_dict
from lora_jax.sweeps.grid import expand
from lora_jax.sweeps.side_by_side import Predicted, packs
from lora_jax.training.sharing import differences


def config(**groups):
    return from_config_dict(groups)


def packed(most=8, predict=None, **sweep):
    made = config(sweep=dict(stack=most, **sweep))
    return packs(expand(made), made.sweep, **({} if predict is None else {"predict": predict}))


def test_without_stacking_runs_of_one_program_are_one_pack_trained_one_by_one():
    found = packed(1, rank=(1, 4), format=("none", "nf4"), baselines=("head",))
    assert [(len(pack.runs), pack.slots) for pack in found] == [(1, 1), (2, 1), (2, 1)]
    assert [pack.wide and pack.wide.lora.rank for pack in found] == [None, 4, 4]


def test_slots_are_filled_evenly():
    for count, most, slots in (
        (10, 8, 5),
        (8, 8, 8),
        (9, 8, 5),
        (17, 8, 6),
        (3, 8, 3),
        (1, 8, 1),
        (20, 0, 20),
    ):
        (pack,) = packed(most, rank=tuple(range(1, count + 1)))
        assert (len(pack.runs), pack.slots) == (count, slots), (count, most)


def test_runs_of_one_seed_stand_together_and_single_seeds_share():
    together = packed(rank=(1, 2), seeds=(0, 1))
    assert [[run.train.seed for run in pack.runs] for pack in together] == [[0, 0], [1, 1]]
    assert "train.seed: 0, 1 (each reads the data in its own order)" in together[1].why
    (alone,) = packed(seeds=(0, 1, 2))
    assert alone.slots == 3


def test_rates_decay_schedule_rank_targets_and_scale_are_data():
    axes = (
        "lora.alpha = 8, 16", "lora.scaling = standard, rslora, fixed", "optim.learning_rate = 1e-3, 2e-3", "optim.weight_decay = 0, 0.1",
        "optim.schedule = linear, cosine", "optim.clip_norm = 0, 1", "optim.lora_plus_ratio = 1, 16", "lora.init = kaiming, orthogonal",
    )  # fmt: skip
    (pack,) = packed(0, rank=(1, 4), targets=("mlp", "all-linear"), axes=axes)
    assert len(pack.runs) == pack.slots == 3 * 2**9


@pytest.mark.parametrize(
    ("axis", "why"),
    [
        ("lora.dora = false, true", "lora.dora: False, True"),
        ("lora.init = kaiming, pissa", "lora.init: kaiming, pissa"),
        ("quant.format = nf4, int8", "quant.format: nf4, int8"),
        ("train.batch_size = 16, 32", "train.batch_size: 16, 32"),
        ("data.max_length = 64, 128", "data.max_length: 64, 128"),
        ("lora.dropout = 0, 0.1", "lora.dropout: 0.0, 0.1"),
        ("optim.beta2 = 0.99, 0.999", "optim.beta2: 0.99, 0.999"),
    ],
)
def test_what_forces_another_program_is_named(axis, why):
    first, second = packed(rank=(1, 2), axes=(axis,))
    assert second.why == (why,) and first.why == ()
    assert differences(first.runs[0], first.runs[1]) == ()


def test_a_base_that_the_initialiser_chooses_and_dropout_tie_a_run_to_its_seed():
    loftq = config(
        method="qlora",
        quant=dict(format="nf4"),
        lora=dict(init="loftq"),
        sweep=dict(rank=(1, 2), seeds=(0, 1), stack=8),
    )
    assert [len(pack.runs) for pack in packs(expand(loftq), loftq.sweep)] == [1] * 4
    rates = replace(
        loftq,
        sweep=replace(loftq.sweep, rank=(), seeds=(), axes=("optim.learning_rate = 1e-3, 1e-2",)),
    )
    assert [pack.slots for pack in packs(expand(rates), rates.sweep)] == [2]
    dropout = config(lora=dict(dropout=0.1), sweep=dict(seeds=(0, 1), stack=8))
    assert [len(pack.runs) for pack in packs(expand(dropout), dropout.sweep)] == [1, 1]


def test_baselines_are_trained_alone():
    found = packed(baselines=("full",), rank=(1, 2), seeds=(0, 1))
    assert [pack.slots for pack in found] == [1, 2, 2]
    assert found[1].why == ("method: full is trained alone",)


def test_slots_are_taken_away_until_the_step_fits_into_the_memory_budget():
    asked = []

    def predict(wide, slots):
        asked.append(slots)
        return Predicted(10, slots, int(1e9 + slots * 1e8), (8,), None, 1.0, 4)

    ranks = tuple(range(1, 13))
    (pack,) = packed(0, predict, rank=ranks, memory_budget_gb=1.55)
    assert (
        pack.slots == 4 and asked[0] == 12 and len(asked) <= 4
    )  # 12 in three rounds of 4, not of 5
    (pack,) = packed(0, predict, rank=ranks, memory_budget_gb=100.0)
    assert pack.slots == 12
    (pack,) = packed(0, predict, rank=ranks, memory_budget_gb=0.5)
    assert pack.slots == 1


def test_models_are_loaded_once():
    found = packed(format=("none", "nf4"), axes=("model.name = a, b",))
    assert [pack.runs[0].model.name for pack in found] == ["a", "a", "b", "b"]
