"""Optimiser state and block inputs in host memory: the same numbers from another memory, and a word
where there is none.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from user_models import same_bits

from lora_jax import LoraSpec, create_state, make_optimizer, make_train_step
from lora_jax.config import Config, ModelConfig, OptimConfig, config_hash, from_config_dict
from lora_jax.core import TrainedWeight, host
from lora_jax.core.init import initialize
from lora_jax.core.notice import say_once
from lora_jax.models import Decoder, Encoder, EncoderConfig
from lora_jax.models.decoder_config import DecoderConfig
from lora_jax.tasks.losses import Sums
from lora_jax.training import offload, optim
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.sharing import differences

# The CPU backend has memory of the kind 'pinned_host' too, which makes the moves real, if of no
# use.


@pytest.fixture
def offloading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "can_offload", lambda: True)


def tree() -> dict[str, Any]:
    trainable = {
        "up/kernel": initialize(jax.random.key(0), (), 700, 600, LoraSpec(8)),
        "bias": TrainedWeight(value=jnp.ones(600)),
    }
    return trainable | {"up/kernel": trainable["up/kernel"].replace(b=jnp.ones((8, 600)))}


def loss(frozen: Any, trainable: Any, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Sums]:
    low = trainable["up/kernel"]
    value = jnp.square(((batch @ low.a) * low.scale) @ low.b + trainable["bias"].value).sum()
    return value, Sums(value, jnp.zeros(()), jnp.float32(1))


def kinds(state: Any) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for leaf in jax.tree.leaves(state):
        found.setdefault(leaf.sharding.memory_kind, set()).add(leaf.size)
    return found


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_moments_stay_in_host_memory_and_nothing_else_changes(
    name: str, offloading: None, tmp_path: Path
) -> None:
    config = OptimConfig(name=name, offload=True)
    batch = jax.random.normal(jax.random.key(1), (4, 700))
    states = {}
    for where in (True, False):
        tx = make_optimizer(replace(config, offload=where), 10)
        step = jax.jit(make_train_step(loss, tx), donate_argnums=0)
        state = create_state(tree(), tx, jax.random.key(0))
        for _ in range(3):
            state, _ = step(state, None, batch)
        states[where] = state
        if where:
            assert (
                min(kinds(state.opt_state)["pinned_host"])
                >= offload.MIN_SIZE
                > max(kinds(state.opt_state)["device"])
            )
            saving = Checkpoints(tmp_path, base="b", run="r")
            saving.save(state, {})
            again, _ = saving.restore(create_state(tree(), tx, jax.random.key(0)))
            saving.close()
            assert same_bits(again, state) and kinds(again.opt_state) == kinds(state.opt_state)
            step(again, None, batch)  # The program takes what was restored.
    assert kinds(states[False]).keys() == {"device"} and same_bits(states[True], states[False])


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_block_inputs_wait_in_host_memory_and_gradients_are_the_same(kind: str, scan: bool) -> None:
    tokens, mask = jnp.arange(20).reshape(2, 10) % 7, jnp.ones((2, 10), bool)
    if kind == "encoder":
        config = EncoderConfig(
            vocab_size=7,
            hidden_size=16,
            num_layers=3,
            num_heads=2,
            intermediate_size=24,
            max_positions=16,
        )
        make, inputs = (
            (lambda offload: Encoder(config, scan=scan, remat=True, offload=offload)),
            (tokens, mask),
        )
    else:
        sizes = dict(
            vocab_size=7,
            hidden_size=16,
            num_layers=3,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            intermediate_size=24,
            max_positions=16,
        )
        config = DecoderConfig(**sizes)
        make, inputs = (
            (lambda offload: Decoder(config, scan=scan, remat=True, offload=offload)),
            (tokens,),
        )
    params = make(False).init(jax.random.key(0), *inputs)["params"]
    value = lambda offload: (
        lambda params: jnp.sin(
            jax.tree.leaves(make(offload).apply({"params": params}, *inputs))[0]
        ).sum()
    )
    there, here = (jax.jit(jax.grad(value(offload)))(params) for offload in (True, False))
    for one, two in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)  # float32, fused otherwise
    moved = str(jax.make_jaxpr(jax.grad(value(True)))(params)).count(
        f"devices=({jax.memory.Space.Host!r},"
    )
    assert moved == (1 if scan else 3) and "<host>" not in str(
        jax.make_jaxpr(jax.grad(value(False)))(params)
    )


def test_a_cpu_says_why_it_does_not_offload(capsys: pytest.CaptureFixture[str]) -> None:
    host.can_offload.cache_clear()
    say_once.cache_clear()
    assert not host.can_offload()
    make_optimizer(OptimConfig(offload=True), 10), make_optimizer(OptimConfig(offload=True), 10)
    assert (
        capsys.readouterr().err
        == "lora_jax: nothing is offloaded: the device is a CPU, whose memory is the host's.\n"
    )


def test_where_arrays_wait_is_no_part_of_a_runs_identity() -> None:
    plain = Config(model=ModelConfig(remat=True))
    assert config_hash(
        replace(plain, model=replace(plain.model, offload=True), optim=OptimConfig(offload=True))
    ) == config_hash(plain)
    with pytest.raises(ValueError, match="needs config.model.remat=true"):
        from_config_dict(dict(model=dict(offload=True)))
    offloaded = replace(plain, optim=OptimConfig(offload=True))
    assert differences(offloaded, offloaded) == (
        "optim.offload: a run in host memory is trained alone",
    )
