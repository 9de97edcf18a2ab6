"""Log-probabilities of continuations: batched and bucketed equals one by one from full logits."""

import jax
import numpy as np
import pytest
from tiny_language import GOLDEN

from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder
from lora_jax.tasks.continuations import score_continuations


@pytest.fixture(scope="module")
def model():
    config, params = load_decoder(GOLDEN / "llama3")
    return Decoder(config), params


def test_any_batching_equals_full_logits_one_by_one(model):
    decoder, params = model
    rng = np.random.default_rng(0)
    requests = [
        (
            rng.integers(3, 40, int(rng.integers(1, 30))).tolist(),
            rng.integers(3, 40, int(rng.integers(1, 12))).tolist(),
        )
        for _ in range(5)
    ]
    expected = []
    for context, continuation in requests:
        ids = np.array([context + continuation])
        logits = decoder.apply({"params": params}, ids[:, :-1])
        logp = jax.nn.log_softmax(logits)[0, len(context) - 1 :]
        expected.append(
            (
                float(sum(logp[n, token] for n, token in enumerate(continuation))),
                bool((logp.argmax(-1) == np.array(continuation)).all()),
            )
        )
    for size in (1, 4):
        found = score_continuations(decoder, params, {}, requests, batch_size=size)
        # The same sums over other paddings: fp32 ulps of sums of some ten logits.
        np.testing.assert_allclose(
            [score for score, _ in found], [score for score, _ in expected], rtol=1e-5, atol=1e-5
        )
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_greedy_continuation_is_said_to_be_one(model):
    decoder, params = model
    context = [5, 6, 7]
    following = int(decoder.apply({"params": params}, np.array([context]))[0, -1].argmax())
    other = 3 if following != 3 else 4
    assert [
        greedy
        for _, greedy in score_continuations(
            decoder, params, {}, [(context, [following]), (context, [other])]
        )
    ] == [True, False]


def test_long_contexts_lose_their_beginning_and_what_cannot_fit_is_an_error(model):
    decoder, params = model
    context = np.random.default_rng(1).integers(3, 40, 50).tolist()
    cut, whole = (
        score_continuations(decoder, params, {}, [(ids, [9, 10])], window=16)[0][0]
        for ids in (context, context[-15:])
    )
    assert cut == pytest.approx(whole, rel=1e-6)
    # By full logits: 16 tokens are read, the last of the continuation only predicted.
    logp = jax.nn.log_softmax(decoder.apply({"params": params}, np.array([[*context[-15:], 9]])))
    assert cut == pytest.approx(float(logp[0, -2, 9] + logp[0, -1, 10]), rel=1e-5)
    with pytest.raises(ValueError, match="from 0 to 39, and 40 came"):
        score_continuations(decoder, params, {}, [([3], [40])])
    for context, continuation in (([], [3]), ([3], []), ([3], list(range(3, 30)))):
        with pytest.raises(ValueError, match="A continuation needs 1 to 16 tokens"):
            score_continuations(decoder, params, {}, [(context, continuation)], window=16)
