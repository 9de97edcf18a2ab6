"""The checks fire on what they are for, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_jax
from lora_jax.adapters.checks import (
    _norm,
    check_effect,
    check_start,
    coverage,
    flags_of_optimizer,
    gradient_flags,
    unreached,
    without_effect,
)
from lora_jax.adapters.surgery import adapt
from tests.adapters.zoo import deep, moved

RULE = r"layers/(up|down)/kernel"


def built(form: str = "scan", **spec):
    model, params, inputs = deep(form)
    pattern = RULE if form == "scan" else r"layers_\d/(up|down)/kernel"
    frozen, trainable = adapt(
        model,
        params,
        inputs,
        lora=[(pattern, lora_jax.LoraSpec(rank=2, **spec))],
        whole=["head/.*"],
        key=jax.random.key(0),
    )
    return model, frozen, trainable, inputs


def trained(steps: int, change=lambda trainable: trainable):
    """(adapter, optimiser state) after some steps towards another output."""
    model, frozen, trainable, (x,) = built(layers=(0, 2))
    trained, fixed = lora_jax.partition(change(trainable))
    tx = optax.adam(1e-2)
    state = tx.init(trained)
    loss = lambda tree: (lora_jax.apply(model, frozen, lora_jax.combine(tree, fixed), x) ** 2).sum()
    for _ in range(steps):
        updates, state = tx.update(jax.grad(loss)(trained), state)
        trained = optax.apply_updates(trained, updates)
    return lora_jax.combine(trained, fixed), state


def test_update_norms_are_those_of_the_dense_updates() -> None:
    trainable = moved(built()[2])
    for leaf in (leaf for leaf in trainable.values() if leaf.rank):
        dense = np.linalg.norm(leaf.delta(), axis=(-2, -1))
        np.testing.assert_allclose(_norm(leaf)[0], dense, rtol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [{}, dict(dora=True), dict(init="pissa"), dict(init="orthogonal"), dict(variant="vera")],
    ids=str,
)
def test_a_new_adapter_starts_as_the_base_and_a_moved_one_does_not(spec: dict) -> None:
    model, frozen, trainable, inputs = built(**spec)
    check_start(trainable)
    output = lambda adapter: lora_jax.apply(model, frozen, adapter, *inputs)
    whole = {path: leaf for path, leaf in trainable.items() if leaf.replaces}
    assert jnp.abs(output(trainable) - output(whole)).max() < 1e-5
    later = moved(trainable)
    of_factors = {path: later[path] if leaf.rank else leaf for path, leaf in trainable.items()}
    assert jnp.abs(output(of_factors) - output(whole)).max() > 0.01
    with pytest.raises(
        ValueError, match=r"'layers/.*' does not start as the base: .* in layers \[0, 1, 2\]"
    ):
        check_start(later)


def test_a_magnitude_that_is_not_the_bases_is_no_start() -> None:
    low = {
        path: leaf
        for path, leaf in built(dora=True)[2].items()
        if isinstance(leaf, lora_jax.core.LowRank)
    }
    path = "layers/up/kernel"
    wrong = {**low, path: low[path].replace(magnitude=low[path].magnitude.at[1].multiply(1.1))}
    with pytest.raises(ValueError, match=r"in layers \[1\]"):
        check_start(wrong)
    assert without_effect(wrong) == ["layers/down/kernel"]


def test_an_adapter_without_any_effect_is_refused_and_one_with_some_effect_is_not() -> None:
    trainable = {
        path: leaf for path, leaf in built()[2].items() if isinstance(leaf, lora_jax.core.LowRank)
    }
    with pytest.raises(ValueError, match="changes nothing: its update is 0 at all 2 sites"):
        check_effect(trainable)
    check_effect({**trainable, "layers/up/kernel": moved(trainable)["layers/up/kernel"]})
    assert set(without_effect(trainable)) == set(trainable)


def test_every_trained_array_has_had_a_gradient_after_two_steps_and_a_has_none_after_one() -> None:
    trainable, state = trained(2)
    flags = flags_of_optimizer(trainable, state)
    assert unreached(trainable, flags) == []
    # Layer 1 is not adapted, has no gradient, and is not asked about.
    assert flags["layers/up/kernel"]["b"].tolist() == [True, False, True]
    first, state = trained(1)
    assert set(unreached(first, flags_of_optimizer(first, state))) == {
        "layers/down/kernel: a",
        "layers/up/kernel: a",
    }


def test_an_array_that_gets_no_gradient_is_named_with_its_layers() -> None:
    def cut(trainable):
        low = trainable[
            "layers/up/kernel"
        ]  # With both factors 0 in layer 2, neither ever gets a gradient there.
        return {
            **trainable,
            "layers/up/kernel": low.replace(a=low.a.at[2].set(0.0), b=low.b.at[2].set(0.0)),
        }

    trainable, state = trained(3, cut)
    assert unreached(trainable, flags_of_optimizer(trainable, state)) == [
        "layers/up/kernel: a in layers [[2]]",
        "layers/up/kernel: b in layers [[2]]",
    ]


def test_flags_add_up_over_steps() -> None:
    trainable = {
        "w": lora_jax.core.LowRank(a=jnp.ones((2, 1)), b=jnp.ones((1, 2)), scale=jnp.ones(1))
    }
    gradient = lambda a, b: {
        "w": trainable["w"].replace(a=jnp.full((2, 1), a), b=jnp.full((1, 2), b))
    }
    seen = gradient_flags(trainable, gradient(0.0, 1.0))
    assert unreached(trainable, seen) == ["w: a"]
    assert unreached(trainable, gradient_flags(trainable, gradient(1.0, 0.0), seen)) == []


def test_coverage_shows_the_rank_of_every_site_and_layer() -> None:
    expected = {
        "layers/up/kernel": {0: 2, 2: 2},
        "layers/down/kernel": {0: 2, 2: 2},
        "head/kernel (whole)": {None: 1},
        "head/bias (whole)": {None: 1},
    }
    table = coverage(built(layers=(0, 2))[2])
    assert dict(table.rows) == expected and table.layers == (0, 1, 2, None)
    assert "layers/up/kernel        2     .     2     ." in str(table)
    loop = coverage(
        {path: leaf for path, leaf in built("loop")[2].items() if "layers_1/up" not in path}
    )
    assert loop.rows["layers_*/up/kernel"] == {0: 2, 2: 2} and loop.rows[
        "layers_*/down/kernel"
    ] == {0: 2, 1: 2, 2: 2}


def test_nothing_is_dropped_without_a_key_whatever_ran_before() -> None:
    """PEFT's models come back in training mode, with dropout live; here there is no mode to
    forget.
    """
    model, frozen, trainable, (x,) = built(dropout=0.5)
    trainable = moved(trainable)
    still = lora_jax.apply(model, frozen, trainable, x)
    assert not np.array_equal(
        lora_jax.apply(model, frozen, trainable, x, key=jax.random.key(0)), still
    )
    assert np.array_equal(lora_jax.apply(model, frozen, trainable, x), still)
    merged, _ = lora_jax.merge(frozen, trainable)
    np.testing.assert_allclose(model.apply({"params": merged}, x), still, atol=1e-4)
