"""What vLLM would refuse of an adapter for PEFT is named, by the rules of its loader."""

import re

import numpy as np
import pytest

from lora_jax.io.peft_export import PREFIX, PeftAdapter
from lora_jax.io.served import refused_by_vllm, vllm_rank

CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q", "v"]}


def made(tensors=(), ranks=(8, 8), **changes):
    found = {PREFIX + key: np.zeros(4, np.float32) for key in tensors}
    for module, rank in zip(("layers.0.q", "layers.0.v"), ranks):
        found[f"{PREFIX}{module}.lora_A.weight"] = np.zeros((rank, 4), np.float32)
        found[f"{PREFIX}{module}.lora_B.weight"] = np.zeros((4, rank), np.float32)
    return PeftAdapter(CONFIG | changes, found, {}, ())


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (made(), None),
        (made(use_rslora=True), None),
        # Another rank and the same scale.
        (made(ranks=(8, 4), rank_pattern={"v": 4}, alpha_pattern={"v": 8}), None),
        (made(ranks=(8, 4), rank_pattern={"v": 4}), "1 of 2 modules.* layers.0.v .4.,"),
        (made(alpha_pattern={"layers.0.q": 1}), "1 of 2 modules"),
        (made(["layers.0.q.lora_magnitude_vector"], use_dora=True), "DoRA"),
        (made(["score.weight"], modules_to_save=["score"]), "trained whole .score."),
        (made(["layers.0.q.base_layer.bias"], bias="lora_only"), "no factors, such as layers.0.q"),
        (made(["embed.token_adapter.trainable_tokens_delta"]), "no factors, such as embed"),
        (made(ranks=(600, 600), r=600), "largest rank is 600"),
        (made(peft_type="LOHA"), "LOHA"),
    ],
)
def test_what_vllm_refuses_is_named_alone(adapter, said):
    found = refused_by_vllm(adapter)
    if said is None:
        assert found == []
    else:
        (line,) = found
        assert re.search(said, line)


def test_the_rank_that_a_server_needs_is_one_of_its_values():
    assert [vllm_rank(made(ranks=(n, 1), r=n)) for n in (1, 2, 8, 9, 257, 512)] == [
        1, 8, 8, 16, 320, 512,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="largest rank is 513"):
        vllm_rank(made(ranks=(513, 1), r=513))
