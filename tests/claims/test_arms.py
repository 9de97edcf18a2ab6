"""The arms that claims share: what each trains, over which rates."""

import re

import pytest

from lab import arms, small_model
from lora_jax.config import TARGETS, Config


class Asked:
    """A lab that notes what is asked for."""

    def arm(self, name, config, rates, *, seeds=None):
        return name, config, tuple(rates), seeds


@pytest.fixture
def made(monkeypatch):
    """The sizes of S that were asked for; none is trained."""
    sizes = []
    monkeypatch.setattr(small_model, "pretrained", lambda *size: sizes.append(size) or "folder")
    monkeypatch.setattr(small_model, "tuning", lambda folder: Config())
    return sizes


def test_an_arm_of_lora_has_its_rank_targets_and_alpha(made):
    name, config, rates, seeds = arms.lora_arm(
        Asked(), 4, "query+value", width=64, seeds=(1,), **{"lora.alpha": 8.0}
    )
    assert (name, rates, seeds) == ("r=4", arms.LORA_RATES, (1,))
    assert (config.method, config.lora.rank, config.lora.alpha) == ("lora", 4, 8.0)
    assert config.lora.targets == "query+value" and made[0][0].width == 64
    assert arms.lora_arm(Asked(), 4, name="mine", rates=(1.0,))[0::2] == ("mine", (1.0,))


def test_full_fine_tuning_has_smaller_rates(made):
    name, config, rates, _ = arms.full_arm(Asked(), **{"train.total_steps": 7})
    assert (name, config.method, config.train.total_steps) == ("full", "full", 7)
    assert max(rates) <= min(arms.LORA_RATES)


@pytest.mark.parametrize("letters", ["q", "qk", "qv", "qkvo"])
def test_projections_are_the_matrices_of_these_letters(letters):
    """Of unrolled and of scanned layers; 'qv' by its name, so that its runs are shared."""
    regex = arms.projections(letters)
    for layers in ("layers", "layers_0", "layers_11"):
        of = [x for x in "qkvo" if re.fullmatch(regex, f"{layers}/attn/{x}/kernel")]
        assert of == [x for x in "qkvo" if x in letters]
    assert not re.fullmatch(regex, "layers/mlp/up/kernel")
    assert (regex == TARGETS["query+value"]) == (letters == "qv")
