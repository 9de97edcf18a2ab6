"""A training loop of the user's own: plain optax with weight decay, flax's TrainState, learning rates by
label. What is not trained keeps every bit, and who forgets to take it out is told.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import lora_jax as lj
from tests.adapters.zoo import deep, kinds, moved

STEPS = 5
# Every field that is data: dropout, a subtracted start, a fixed factor, DoRA's norms, a scan's stack.
SPECS = {
    "lora": dict(dropout=0.1),
    "pissa": dict(init="pissa"),
    "lora_fa": dict(variant="lora_fa"),
    "dora": dict(dora=True),
    "layers": dict(layers=(0, 2)),
}


def built(name):
    model, params, (x,) = deep("scan")
    rules = [(r"layers/(up|down)/kernel", lj.LoraSpec(rank=2, alpha=4.0, **SPECS[name]))]
    quant = [(r"layers/up/kernel", lj.QuantSpec("nf4", 8, double=False))]
    frozen, trainable = lj.adapt(
        model, params, (x,), lora=rules, quant=quant, whole=["head/.*"], key=jax.random.key(0)
    )
    trained, fixed = lj.partition(moved(trainable))

    def loss(trained, key=None):
        y = lj.apply(model, frozen, lj.combine(trained, fixed), x, key=key)
        return jnp.square(y - 1).mean()

    return frozen, trained, fixed, loss


def by_hand(trained, loss):
    tx = optax.adamw(1e-2, weight_decay=0.1)
    state = tx.init(trained)

    @jax.jit
    def step(trained, state, key):
        updates, state = tx.update(jax.grad(loss)(trained, key), state, trained)
        return optax.apply_updates(trained, updates), state

    for n in range(STEPS):
        trained, state = step(trained, state, jax.random.key(n))
    return trained


def by_train_state(trained, loss):
    tx = optax.adamw(1e-2, weight_decay=0.1)
    state = TrainState.create(apply_fn=loss, params=trained, tx=tx)
    step = jax.jit(
        lambda state: state.apply_gradients(grads=jax.grad(state.apply_fn)(state.params))
    )
    for _ in range(STEPS):
        state = step(state)
    return state.params


def by_label(trained, loss):
    rates = {"a": 1e-2, "b": 2e-1, "vector": 1e-2, "whole": 0.0}
    tx = optax.multi_transform(
        {label: optax.adamw(rate, weight_decay=0.1) for label, rate in rates.items()},
        lj.core.trainable_labels(trained),
    )
    state = tx.init(trained)
    for _ in range(STEPS):
        updates, state = tx.update(jax.grad(loss)(trained), state, trained)
        trained = optax.apply_updates(trained, updates)
    return trained


@pytest.mark.parametrize("train", [by_hand, by_train_state, by_label])
@pytest.mark.parametrize("name", SPECS)
def test_what_is_trained_moves_and_all_else_keeps_every_bit(name, train):
    frozen, trained, fixed, loss = built(name)
    before = jax.tree.map(np.array, (frozen, lj.combine(trained, fixed)))
    new = lj.combine(train(trained, loss), fixed)
    jax.tree.map(
        np.testing.assert_array_equal, (frozen, fixed), (before[0], lj.partition(before[1])[1])
    )
    same = jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), before[1], new)
    for path, leaf in lj.core.trainable_mask(before[1]).items():
        for field, on in vars(leaf).items():
            if isinstance(on, bool) and field != "of_base":  # no array
                held = not on or (train is by_label and leaf.label(field) == "whole")
                assert getattr(same[path], field) == held, (path, field)
    assert float(loss(lj.partition(new)[0])) < float(loss(trained))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
@pytest.mark.parametrize("name", SPECS)
def test_differentiating_what_is_not_trained_is_an_error_that_says_what_to_do(name, wrap):
    model, params, (x,) = deep("scan")
    frozen, trained, fixed, _ = built(name)
    loss = lambda trainable: lj.apply(model, frozen, trainable, x).sum()
    boxed = lambda trainable: model.apply({"params": lj.join(frozen, trainable)}, x).sum()
    for function in (loss, boxed):
        with pytest.raises(
            TypeError, match=r"'\w+' of 'layers/\w+/kernel' is not trained.*partition"
        ):
            jax.grad(wrap(function))(lj.combine(trained, fixed))


def test_data_of_every_kind_of_trained_thing_is_refused():
    model, params, (tokens,) = kinds()
    rows = {"embed/embedding": lj.core.rows_of(params["embed"]["embedding"], [1, 3])}
    loss = lambda trainable: lj.apply(model, params, trainable, tokens).sum()
    with pytest.raises(TypeError):  # Row numbers are integers, which JAX refuses by itself.
        jax.grad(loss)(rows)
    trained, fixed = lj.partition(rows)
    gradient = jax.grad(lambda trained: loss(lj.combine(trained, fixed)))(trained)
    assert np.any(gradient["embed/embedding"].value)

    whole = {"dense/kernel": lj.core.TrainedWeight(value=params["dense"]["kernel"])}
    assert np.any(jax.grad(loss)(whole)["dense/kernel"].value)  # It has no data.


def test_the_mask_is_true_where_partition_has_an_array():
    _, trained, fixed, _ = built("pissa")
    whole = lj.combine(trained, fixed)
    mask = lj.core.trainable_mask(whole)
    assert jax.tree.structure(mask) == jax.tree.structure(whole)
    assert sum(jax.tree.leaves(mask)) == len(jax.tree.leaves(trained))
    assert not mask["layers/up/kernel"].scale and mask["layers/up/kernel"].a
