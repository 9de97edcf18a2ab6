"""Padding and stacking adapters: identities, and the same function under one compiled program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from user_models import adapted, build, error, same_bits, with_b

import lora_jax
from lora_jax import LoraSpec, adapt
from lora_jax.adapters import stack, unstack
from lora_jax.adapters.stacking import pad, trim
from lora_jax.core import TrainedWeight

WIDE = [(".*(query|value|up)/kernel", LoraSpec(4))]
NARROW = [(".*query/kernel", LoraSpec(1, alpha=3.0))]
PARTLY = [
    (".*query/kernel", LoraSpec(2, layers=(1,))),
    (".*up/kernel", LoraSpec(3, scaling="rslora")),
]


def adapters() -> tuple[Any, list[Any]]:
    built = build("scan")
    made = [
        adapt(
            built.model,
            built.params,
            built.inputs,
            lora=rules,
            whole=["norm/.*"],
            key=jax.random.key(seed),
        )
        for seed, rules in enumerate((WIDE, NARROW, PARTLY))
    ]
    return made[0][0], [with_b(trainable) for _, trainable in made]


def test_unstacking_a_stack_is_the_identity() -> None:
    _, three = adapters()
    again = unstack(stack(three))
    assert len(again) == 3 and all(
        same_bits(one, two) for one, two in zip(again, three, strict=True)
    )


def test_trimming_a_padded_adapter_is_the_identity() -> None:
    _, (wide, narrow, _) = adapters()
    padded = pad(narrow, wide)
    assert jax.tree.map(jnp.shape, padded) == jax.tree.map(jnp.shape, wide)
    assert same_bits(trim(padded), narrow)
    assert lora_jax.trainable_parameters(padded) == lora_jax.trainable_parameters(narrow)


def test_padded_and_stacked_adapters_compute_what_they_compute_alone() -> None:
    built = build("scan")
    frozen, three = adapters()
    run = lambda trainable: lora_jax.apply(built.model, frozen, trainable, *built.inputs)
    together = jax.jit(jax.vmap(run))(stack(three))
    for one, trainable in zip(together, three, strict=True):
        assert error(one, jax.jit(run)(trainable)) < 1e-5  # float32 sums in another order
    assert error(together[0], together[1]) > 0.01


def test_padding_gets_no_gradient() -> None:
    built = build("scan")
    frozen, (wide, narrow, _) = adapters()
    padded = pad(narrow, wide)
    trained, fixed = lora_jax.partition(padded)

    def loss(trained):
        trainable = lora_jax.combine(trained, fixed)
        return jnp.sin(lora_jax.apply(built.model, frozen, trainable, *built.inputs)).sum()

    grads = jax.jit(jax.grad(loss))(trained)
    assert not np.any(grads["blocks/up/kernel"].a) and not np.any(grads["blocks/up/kernel"].b)
    query = grads["blocks/attn/query/kernel"]
    assert not np.any(query.a[..., 1:]) and not np.any(query.b[..., 1:, :])
    assert np.any(query.a[..., :1]) and np.any(query.b[..., :1, :])


def test_adapters_that_do_not_fit_together_are_refused() -> None:
    _, (wide, narrow, _) = adapters()
    with pytest.raises(ValueError, match="has 4 sites that the wider one has not, such as"):
        pad(wide, {path: leaf for path, leaf in narrow.items() if "norm" not in path})
    with pytest.raises(ValueError, match="an adapter of rank 4 cannot be padded to rank 1"):
        pad({"blocks/attn/query/kernel": wide["blocks/attn/query/kernel"]}, narrow)
    with pytest.raises(
        ValueError, match="'head' is trained whole by one adapter and not at all by another"
    ):
        stack([wide, {**narrow, "head": TrainedWeight(value=jnp.ones(3))}])
    with pytest.raises(ValueError, match="Cannot stack no adapters"):
        stack([])
    with pytest.raises(ValueError, match="holds no adapter"):
        unstack({})


def test_dropout_in_one_adapter_only_is_refused() -> None:
    built = build("scan")
    _, plain = adapted(built)
    _, dropped = adapted(built, spec=LoraSpec(rank=2, dropout=0.1))
    with pytest.raises(ValueError, match=r"has dropout in one adapter and none in another"):
        stack([plain, dropped])
