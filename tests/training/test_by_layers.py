"""An optimiser that goes through stacked layers one by one takes the step that it takes all at once,
and needs less memory.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_task import PLAIN

from lora_jax import LoraSpec, make_optimizer, partition
from lora_jax.analysis import plan
from lora_jax.config import from_config_dict
from lora_jax.core import TrainedWeight
from lora_jax.core.init import initialize
from lora_jax.training import by_layers

LAYERS, IN, RANK = 3, 512, 8


def trainables() -> dict[str, Any]:
    """Factors of stacked layers, enough numbers a matrix for 8 bits, and a head apart."""
    key, spec = jax.random.key(0), LoraSpec(rank=RANK)
    made = {
        f"layers/{name}/kernel": initialize(jax.random.fold_in(key, n), (LAYERS,), IN, IN, spec)
        for n, name in enumerate("qv")
    }
    return made | {"head/kernel": TrainedWeight(jnp.ones((IN, 2)))}


@pytest.mark.parametrize("clip", [0.01, 0.0])
def test_layers_one_by_one_are_the_same_step(monkeypatch: pytest.MonkeyPatch, clip: float) -> None:
    """Up to whether a product and a sum are rounded once or twice, which a compiler decides anew for
    every loop: 3.8e-7 of a number at most here, over two steps.
    """
    config = replace(PLAIN, name="adamw8bit", clip_norm=clip, lora_plus_ratio=4.0, weight_decay=0.1)
    tx = make_optimizer(config, 10)
    trained, _ = partition(trainables())
    rng = np.random.default_rng(0)
    random = lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    grads, state = jax.tree.map(random, trained), tx.init(trained)
    for _ in range(2):
        # Of functions of their own: jit keeps what it traced.
        at_once = jax.jit(lambda *trees: tx.update(*trees))(grads, state, trained)
        with monkeypatch.context() as patched:
            patched.setattr(by_layers, "LARGE", 1)
            assert by_layers._stacked(grads) == (LAYERS, sorted(trained)[1:])
            one_by_one = jax.jit(lambda *trees: tx.update(*trees))(grads, state, trained)
        assert jax.tree.structure(one_by_one) == jax.tree.structure(at_once)
        for ours, theirs in zip(jax.tree.leaves(one_by_one), jax.tree.leaves(at_once)):
            if ours.dtype == jnp.uint8:  # What lies between two codes may go to either.
                apart = np.abs(np.asarray(ours, np.int32) - np.asarray(theirs, np.int32))
                assert apart.max() <= 1 and (apart > 0).mean() < 1e-3
            else:
                np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)
        state = at_once[1]


@pytest.mark.slow
def test_65B_has_its_gradients_and_not_its_updates_in_memory() -> None:
    """QLoRA of LLaMA-65B, rank 64, 1 x 512: with all updates together 50.5 GB."""
    found = plan(
        from_config_dict(
            dict(
                model=dict(
                    name="llama-65b",
                    remat=True,
                    compute_dtype="bfloat16",
                    base_dtype="bfloat16",
                ),
                data=dict(task="completion", max_length=512),
                method="qlora",
                lora=dict(rank=64),
                quant=dict(format="nf4"),
                optim=dict(name="adamw8bit"),
                train=dict(batch_size=1),
            )
        )
    )
    assert found.footprint.arguments < found.peak < 46.5e9
