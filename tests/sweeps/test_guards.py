"""What is said of a sweep before it runs."""

from dataclasses import replace

import pytest

from lora_jax.config import Config, LoraConfig, SweepConfig
from lora_jax.sweeps.grid import expand
from lora_jax.sweeps.guards import cautions


def said(method="lora", lora=(), **sweep):
    run = replace(Config(), method=method, lora=replace(LoraConfig(), **dict(lora)))
    config = replace(run, sweep=SweepConfig(**{"seeds": (0, 1), **sweep}))
    return cautions(config, expand(config))


def test_a_plain_grid_has_nothing_odd():
    assert said(rank=(1, 4, 16), format=("none", "nf4"), axes=("lora.alpha = 8, 16",)) == []


@pytest.mark.parametrize(
    "sweep",
    [
        {"rank": (4, 4)}, {"seeds": (0, 1, 0)}, {"targets": ("all-linear", "all-linear")}, {"axes": ("lora.alpha = 8, 16, 8",)},
        {"baselines": ("head", "head")},
    ],
)  # fmt: skip
def test_a_value_that_stands_twice_is_named(sweep):
    (text,) = said(**sweep)
    assert "has a value twice: its runs are trained once" in text


def test_two_names_of_one_set_and_a_name_of_ours_for_another_are_said():
    for sweep in (
        {"targets": ("a=mlp", "b=mlp", "attention")},
        {"axes": ("lora.targets = a=mlp, b=mlp",)},
        {"axes": ("quant.targets = a=mlp, b=mlp",), "format": ("nf4",)},
    ):
        twice, same = said(**sweep)
        assert "has a value twice" in twice and same == "'a' and 'b' are one set of targets."
    (text,) = said(targets=("mlp=layers/x/kernel", "attention=attention"))
    assert "Targets 'mlp' are 'layers/x/kernel' in this sweep, not the set" in text


@pytest.mark.parametrize(
    ("axes", "lora", "setting"),
    [
        ("lora.alpha, lora.scaling = (16, standard), (2, fixed)", {"rank": 8}, "lora.alpha, lora.scaling"),
        ("lora.alpha, lora.scaling = (16, standard), (8, rslora)", {"rank": 4}, "lora.alpha, lora.scaling"),
        ("lora.group_size = 16, 32", {}, "lora.group_size"),
        ("lora.calibration_batches = 4, 8", {}, "lora.calibration_batches"),
        ("optim.adalora.beta1 = 0.8, 0.9", {}, "optim.adalora.beta1"),
        ("lora.alpha = 8, 16", {"variant": "vera"}, "lora.alpha"),
    ],
)  # fmt: skip
def test_arms_that_are_one_in_effect_are_named_once_for_all_seeds(axes, lora, setting):
    (text,) = said(axes=(axes,), lora=lora)
    assert f"are one in effect: between them, {setting} changes nothing" in text


def test_arms_that_differ_in_effect_are_not():
    other = ("lora.alpha, lora.scaling = (16, standard), (16, rslora)",)
    assert said(axes=other, lora={"rank": 4}) == []
    assert said(axes=("lora.calibration_batches = 4, 8",), lora={"init": "eva"}) == []


def test_one_seed_is_said_to_support_no_comparison():
    (text,) = said(rank=(1, 4), seeds=(0,))
    assert "one seed a setting" in text
    assert said(seeds=(0,)) == []
