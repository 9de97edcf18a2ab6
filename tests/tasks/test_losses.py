"""Losses are sums with their weight: filler rows count nothing, and parts add up to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.tasks.heads import HEADS, best_span
from lora_jax.tasks.losses import Sums, classification
from lora_jax.training import evaluate

RNG = np.random.default_rng(0)
LOGITS, LABELS = (
    jnp.asarray(RNG.standard_normal((6, 4)), jnp.float32),
    jnp.asarray(RNG.integers(0, 4, 6), jnp.int32),
)


def test_the_loss_is_the_weighted_sum_of_cross_entropies_in_nats() -> None:
    weight = jnp.asarray([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    sums = classification(LOGITS, LABELS, weight).sums()
    logits, weights = np.asarray(LOGITS, np.float64), np.asarray(weight, np.float64)
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), np.asarray(LABELS)]
    right = logits.argmax(1) == np.asarray(LABELS)
    assert float(sums.loss) == pytest.approx((each * weights).sum(), rel=1e-6)
    assert float(sums.correct) == (right * weights).sum() and float(sums.weight) == 4


@pytest.mark.parametrize("smoothing", [0.1, 0.75])
def test_smoothed_labels_share_their_weight_among_all_classes(smoothing) -> None:
    """-sum_c q_c log p_c in float64, with q = (1 - s) onehot + s / classes, and its gradient."""
    weight = jnp.asarray([1.0, 0.0, 1.0, 2.0, 0.0, 1.0])
    loss = lambda logits: classification(logits, LABELS, weight, smoothing).total
    found, gradient = jax.value_and_grad(loss)(LOGITS)
    logits, weights = np.asarray(LOGITS, np.float64), np.asarray(weight, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    q = (1 - smoothing) * np.eye(4)[np.asarray(LABELS)] + smoothing / 4
    assert float(found) == pytest.approx(-((q * np.log(p)).sum(1) * weights).sum(), rel=1e-6)
    np.testing.assert_allclose(gradient, (p - q) * weights[:, None], atol=1e-6)


def test_filler_rows_change_nothing_and_get_no_gradient() -> None:
    weight = jnp.asarray([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    whole, part = (
        classification(LOGITS, LABELS, weight).sums(),
        classification(LOGITS[:3], LABELS[:3], weight[:3]).sums(),
    )
    assert np.allclose(jax.tree.leaves(whole), jax.tree.leaves(part), rtol=1e-6)
    grad = jax.grad(lambda logits: classification(logits, LABELS, weight).sums().loss)(LOGITS)
    assert not np.any(grad[3:]) and np.all(np.any(np.asarray(grad[:3]) != 0, axis=1))


def test_an_answer_outside_the_window_trains_nothing_and_is_never_right() -> None:
    """It counts among the answers all the same: the third row's labels are -1."""
    logits = jnp.asarray(RNG.standard_normal((3, 5, 2)), jnp.float32)
    labels = jnp.asarray([[1, 2], [0, 0], [-1, -1]])
    batch = {"labels": labels, "weight": jnp.ones(3), "allowed": jnp.ones((3, 5), bool)}
    sums = HEADS["span"](logits, batch).sums()
    assert float(sums.weight) == 3

    each = np.asarray(jax.nn.logsumexp(logits[:2], 1))
    each = each - np.asarray(logits)[np.arange(2)[:, None], labels[:2], np.arange(2)]
    assert float(sums.loss) == pytest.approx(each.mean(-1).sum(), rel=1e-6)
    grad = jax.grad(lambda logits: HEADS["span"](logits, batch).total)(logits)
    assert np.any(grad[:2]) and not np.any(grad[2])
    # Token 0 is what a label of -1 would be taken for.
    sure = jnp.zeros((3, 5, 2)).at[:, 0].set(9.0)
    assert HEADS["span"](sure, batch).correct.tolist() == [0, 1, 0]


def test_a_score_loses_half_its_squared_error_and_is_right_within_a_half() -> None:
    batch = {"labels": jnp.asarray([1.0, 2.5, 2.0]), "weight": jnp.asarray([1.0, 1.0, 0.0])}
    losses = HEADS["score"](jnp.asarray([[3.0], [2.25], [9.0]]), batch)
    assert losses.loss.tolist() == [2.0, 0.03125, 0.0] and losses.correct.tolist() == [0, 1, 0]


def test_the_best_span_is_legal_and_no_longer_than_asked() -> None:
    begin, end = [0.0, 3.0, 0.0, 0.0], [4.0, 0.0, 1.0, 2.0]
    logits = jnp.asarray([[begin, end]])
    assert best_span(logits).tolist() == [[1, 3]]  # not 1 to 0, which has the largest sum
    assert best_span(logits, longest=1).tolist() == [[0, 0]]
    assert best_span(logits.at[0, 1, 2].set(9.0), longest=1).tolist() == [[2, 2]]


def test_low_precision_logits_are_summed_in_float32() -> None:
    sums = classification(LOGITS.astype(jnp.bfloat16), LABELS, jnp.ones(6)).sums()
    assert sums.loss.dtype == jnp.float32


def test_evaluation_weighs_batches_by_their_real_rows() -> None:
    parts = [
        Sums(*(jnp.float32(v) for v in values)) for values in ((3.0, 1.0, 2.0), (8.0, 5.0, 8.0))
    ]
    assert evaluate(lambda frozen, trainable, part: part, None, None, parts) == {
        "loss": 1.1,
        "accuracy": 0.6,
        "examples": 10,
    }
    with pytest.raises(ValueError, match="Cannot evaluate on no batches"):
        evaluate(lambda *_: None, None, None, [])
    with pytest.raises(ValueError, match="every row of every batch is filler"):
        evaluate(lambda frozen, trainable, part: Sums(*[jnp.float32(0)] * 3), None, None, [1])
