"""The loss under a frozen head equals the plain one, value and gradient, whatever the blocks and
passes, and never forms the logits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lora_jax.core.mesh import Cut, make_mesh
from lora_jax.kernels import frozen_head
from lora_jax.kernels.frozen_head import Head, head_loss, word_losses

TOKENS, HIDDEN, VOCAB = 37, 8, 301


@pytest.fixture(params=[(512, (512, 128)), (64, (16, 4)), (7, (37, 37)), (301, (8, 1))])
def sizes(request, monkeypatch):
    block, passes = request.param
    monkeypatch.setattr(frozen_head, "_block", lambda: block)
    monkeypatch.setattr(frozen_head, "PASSES", passes)


def example(axis, dtype=jnp.float32, share=0.4):
    keys = iter(jax.random.split(jax.random.key(0), 5))
    words = jax.random.normal(next(keys), (VOCAB, HIDDEN), dtype)
    hidden = 3 * jax.random.normal(next(keys), (TOKENS, HIDDEN), dtype)
    labels = jax.random.randint(next(keys), (TOKENS,), 0, VOCAB)
    # A few labels are the likeliest words: the count of right ones must not be zero.
    labels = labels.at[:9].set(
        (hidden.astype(jnp.float32) @ words.T.astype(jnp.float32)).argmax(-1)[:9]
    )
    weight = jnp.where(jax.random.bernoulli(next(keys), share, (TOKENS,)), 0.5, 0.0).at[0].set(2.0)
    return hidden, words if axis == 0 else words.T, labels, weight


def logits_of(hidden, words, head):
    y = (hidden @ (words.T if head.axis == 0 else words)).astype(jnp.float32)
    return y if head.softcap is None else head.softcap * jnp.tanh(y / head.softcap)


def plain(hidden, words, labels, weight, head):
    return (
        optax.softmax_cross_entropy_with_integer_labels(logits_of(hidden, words, head), labels)
        * weight
    ).sum()


@pytest.mark.parametrize("head", [Head(0), Head(1), Head(0, 5.0)])
def test_value_and_gradient_equal_the_plain_loss(sizes, head):
    hidden, words, labels, weight = example(head.axis)
    ours = jax.value_and_grad(lambda h: 3 * head_loss(h, words, labels, weight, head)[0])(hidden)
    theirs = jax.value_and_grad(lambda h: 3 * plain(h, words, labels, weight, head))(hidden)
    # float32 sums in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, theirs)
    loss, each, correct = jax.jit(head_loss, static_argnums=4)(hidden, words, labels, weight, head)
    np.testing.assert_allclose(3 * loss, ours[0], rtol=1e-6)
    np.testing.assert_allclose(each.sum(), loss, rtol=1e-6)
    single = [
        plain(hidden, words, labels, weight * (jnp.arange(TOKENS) == n), head) for n in (0, 5)
    ]
    np.testing.assert_allclose(each[jnp.array([0, 5])], single, rtol=2e-5, atol=2e-5)
    right = logits_of(hidden, words, head).argmax(-1) == labels
    assert 0 < float(correct.sum()) == pytest.approx(float((right * weight).sum()))
    np.testing.assert_array_equal(correct, right * weight)
    np.testing.assert_array_equal(word_losses(hidden, words, labels, head).right, right)
    # Every word stands there twice: the first of the two is the likeliest.
    twice = jnp.concatenate([words, words], head.axis)
    np.testing.assert_array_equal(word_losses(hidden, twice, labels, head).right, right)


@pytest.mark.parametrize("head, vocab", [(Head(0, 5.0), 300), (Head(1), 300), (Head(1), VOCAB)])
def test_on_a_mesh_it_is_that_of_one_device(head, vocab, monkeypatch):
    """Each device has its own tokens (37 are filled up) and, where two divide them, own words."""
    monkeypatch.setattr(frozen_head, "PASSES", (4, 2))
    monkeypatch.setattr(frozen_head, "_block", lambda: 64)
    hidden, words, labels, weight = example(head.axis)
    words, labels = jnp.take(words, jnp.arange(vocab), head.axis), jnp.minimum(labels, vocab - 1)
    twice = jnp.concatenate([jnp.take(words, jnp.arange(vocab // 2), head.axis)] * 2, head.axis)
    cut = Cut(make_mesh(2, 2, 2), *[("model", "fsdp"), ("fsdp", "model")][head.axis])

    def both(hidden, words, labels, cut=None):
        def loss(hidden):
            out = head_loss(hidden, words, labels, weight, head, cut)
            return out[0], out

        return jax.value_and_grad(loss, has_aux=True)(hidden)

    step = jax.jit(both, static_argnums=3)
    for each in (words, twice) if vocab % 2 == 0 else (words,):
        one, eight = step(hidden, each, labels), step(hidden, each, labels, cut)
        np.testing.assert_array_equal(eight[0][1][2], one[0][1][2])  # which are right
        # float32 sums in another order.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), eight, one
        )


def test_a_gradient_of_single_tokens_losses_is_an_error(sizes):
    hidden, words, labels, weight = example(0)
    with pytest.raises(ValueError, match="that of its sum"):
        jax.grad(lambda h: head_loss(h, words, labels, weight, Head(0))[1].max())(hidden)


def test_16_bit_words_are_multiplied_as_they_are_and_summed_in_float32(sizes):
    hidden, words, labels, weight = example(0, jnp.bfloat16)
    loss, gradient = jax.value_and_grad(lambda h: head_loss(h, words, labels, weight, Head(0))[0])(
        hidden
    )
    wide = lambda x: x.astype(jnp.float32)
    truth, exact = jax.value_and_grad(lambda h: plain(h, wide(words), labels, weight, Head(0)))(
        wide(hidden)
    )
    assert gradient.dtype == jnp.bfloat16
    assert float(loss) == pytest.approx(
        float(truth), rel=1e-5
    )  # Products of bfloat16 numbers are exact in float32.
    np.testing.assert_allclose(wide(gradient), exact, atol=2e-2 * float(jnp.abs(exact).max()))


def test_tokens_that_do_not_count_are_never_computed(sizes):
    hidden, words, labels, weight = example(0)
    poisoned = jnp.where((weight == 0)[:, None], jnp.nan, hidden)
    loss, gradient = jax.value_and_grad(lambda h: head_loss(h, words, labels, weight, Head(0))[0])(
        poisoned
    )
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert int((gradient != 0).any(-1).sum()) == int((weight != 0).sum())
    assert float(head_loss(hidden, words, labels, jnp.zeros(TOKENS), Head(0))[0]) == 0


@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf])
def test_what_is_not_finite_makes_the_loss_so(sizes, wrong):
    hidden, words, labels, weight = example(0, share=1.0)
    assert not np.isfinite(head_loss(hidden.at[3, 2].set(wrong), words, labels, weight, Head(0))[0])
    assert not np.isfinite(head_loss(hidden, words.at[5, 1].set(wrong), labels, weight, Head(0))[0])


def test_logits_far_apart_do_not_overflow(sizes):
    hidden, words, labels, weight = example(0)
    ours = jax.value_and_grad(lambda h: head_loss(h, 40 * words, labels, weight, Head(0))[0])(
        hidden
    )
    theirs = jax.value_and_grad(lambda h: plain(h, 40 * words, labels, weight, Head(0)))(hidden)
    assert float(theirs[0]) > 1000
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-3), ours, theirs)


def shapes_in(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    yield from shapes_in(getattr(inner, "jaxpr", inner))


def test_no_array_of_a_pass_times_the_vocabulary_is_formed(monkeypatch):
    monkeypatch.setattr(frozen_head, "_block", lambda: 64)
    hidden, words, labels, weight = example(0)
    step = jax.make_jaxpr(jax.grad(lambda h: head_loss(h, words, labels, weight, Head(0))[0]))(
        hidden
    )
    shapes = set(shapes_in(step.jaxpr))
    assert (TOKENS, 64) in shapes
    assert max(np.prod(shape) for shape in shapes if shape != words.shape) <= TOKENS * 64


def test_16_bit_words_are_not_copied_to_float32():
    wide, like = 16_384, jax.ShapeDtypeStruct
    step = jax.jit(lambda h, words, labels: word_losses(h, words, labels, Head(0), gradient=True))
    compiled = step.lower(
        like((64, 128), jnp.bfloat16), like((wide, 128), jnp.bfloat16), like((64,), jnp.int32)
    ).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.75 * 4 * wide * 128
