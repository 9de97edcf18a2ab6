"""The chunked vocabulary loss equals the plain one in value and in every gradient, and never forms
the full logits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lora_jax.kernels.vocab_loss import vocabulary_loss

TOKENS, HIDDEN, VOCAB = 37, 8, 301


def head(frozen, trained, x):
    return 5 * jnp.tanh(x @ (frozen["w"] + trained["a"] @ trained["b"]))


@functools.lru_cache
def example():
    keys = iter(jax.random.split(jax.random.key(0), 6))
    frozen = {"w": jax.random.normal(next(keys), (HIDDEN, VOCAB))}
    trained = {
        "a": jax.random.normal(next(keys), (HIDDEN, 2)),
        "b": jax.random.normal(next(keys), (2, VOCAB)),
    }
    hidden = jax.random.normal(next(keys), (TOKENS, HIDDEN))
    labels = jax.random.randint(next(keys), (TOKENS,), 0, VOCAB)
    weight = jnp.where(jax.random.bernoulli(next(keys), 0.4, (TOKENS,)), 0.5, 0.0).at[0].set(2.0)
    return frozen, trained, hidden, labels, weight


def plain(frozen, trained, hidden, labels, weight, smoothing=0.0):
    wanted = optax.smooth_labels(jax.nn.one_hot(labels, VOCAB), smoothing)
    return (optax.softmax_cross_entropy(head(frozen, trained, hidden), wanted) * weight).sum()


@pytest.mark.parametrize(("chunk", "smoothing"), [(1, 0.0), (5, 0.1), (64, 0.0)])
def test_value_and_gradients_equal_the_plain_loss(chunk, smoothing):
    frozen, trained, hidden, labels, weight = example()
    own = (chunk, smoothing)
    chunked = lambda trained, hidden: (
        3 * vocabulary_loss(head, frozen, trained, hidden, labels, weight, *own)[0]
    )
    ours = jax.value_and_grad(chunked, (0, 1))(trained, hidden)
    theirs = jax.value_and_grad(
        lambda t, h: 3 * plain(frozen, t, h, labels, weight, smoothing), (0, 1)
    )(trained, hidden)
    # float32 sums in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), ours, theirs)
    without = vocabulary_loss(head, frozen, trained, hidden, labels, weight, *own)
    np.testing.assert_allclose(without[0] * 3, ours[0], rtol=1e-6)
    np.testing.assert_allclose(without[1].sum(), without[0], rtol=1e-6)
    right = (head(frozen, trained, hidden).argmax(-1) == labels) * weight
    np.testing.assert_array_equal(without[2], right)
    with pytest.raises(ValueError, match="that of its sum"):
        jax.grad(
            lambda h: vocabulary_loss(head, frozen, trained, h, labels, weight, chunk)[1].max()
        )(hidden)


def test_tokens_that_do_not_count_are_never_computed():
    frozen, trained, hidden, labels, weight = example()
    poisoned = jnp.where((weight == 0)[:, None], jnp.nan, hidden)
    count = int((weight != 0).sum())
    loss, gradient = jax.value_and_grad(
        lambda h: vocabulary_loss(head, frozen, trained, h, labels, weight, 1)[0]
    )(poisoned)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert int((gradient != 0).any(-1).sum()) == count
    nothing = vocabulary_loss(head, frozen, trained, hidden, labels, jnp.zeros(TOKENS), 4)
    assert float(nothing[0]) == 0


def test_no_array_of_the_size_of_the_full_logits_is_formed():
    frozen, trained, hidden, labels, weight = example()
    step = jax.grad(lambda t, h: vocabulary_loss(head, frozen, t, h, labels, weight, 4)[0], (0, 1))
    assert f"{TOKENS},{VOCAB}" not in str(jax.make_jaxpr(step)(trained, hidden))
    assert f"{TOKENS},{VOCAB}" in str(
        jax.make_jaxpr(lambda t, h: plain(frozen, t, h, labels, weight))(trained, hidden)
    )


def test_it_works_for_several_adapters_at_once():
    frozen, trained, hidden, labels, weight = example()
    two = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), trained)
    run = jax.grad(lambda t: vocabulary_loss(head, frozen, t, hidden, labels, weight, 8)[0])
    together = jax.vmap(run)(two)
    for n in range(2):
        alone = run(jax.tree.map(lambda x, n=n: x[n], two))
        jax.tree.map(
            lambda a, b, n=n: np.testing.assert_allclose(a[n], b, rtol=1e-5, atol=1e-5),
            together,
            alone,
        )
