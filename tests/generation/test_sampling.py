"""Every step from logits to the next token equals transformers' processor of that name."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.generation.sampling import (
    Sampling,
    block_repeated_ngrams,
    choose,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    likeliest,
    penalise_repetition,
)

ARRAYS = np.load(Path(__file__).resolve().parents[1] / "golden" / "decoders" / "logits.npz")
TEXTS, LOGITS = ARRAYS["process/texts"], ARRAYS["process/logits"]
SEEN = np.stack([np.isin(np.arange(LOGITS.shape[1]), text) for text in TEXTS])


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("temperature", lambda logits: logits / 0.7),
        ("top_k", lambda logits: keep_top_k(logits, 5)),
        ("top_p", lambda logits: keep_top_p(logits, 0.8)),
        ("min_p", lambda logits: keep_min_p(logits, 0.1)),
        ("repetition_penalty", lambda logits: penalise_repetition(logits, jnp.asarray(SEEN), 1.3)),
        (
            "no_repeat_ngram",
            lambda logits: block_repeated_ngrams(logits, jnp.asarray(TEXTS), TEXTS.shape[1], 2),
        ),
    ],
)
def test_a_step_equals_transformers(name, ours):
    # One float32 operation an entry: equal to the last bit or two; minus infinities in the same
    # places.
    np.testing.assert_allclose(ours(jnp.asarray(LOGITS)), ARRAYS[f"process/{name}"], rtol=1e-6)


def test_the_likeliest_token_is_the_first_of_the_largest_as_argmax_has_it():
    logits = jnp.asarray(
        [
            [1.0, 3.0, 3.0],
            [-jnp.inf] * 3,
            [5.0, jnp.nan, jnp.nan],
            [2.0, jnp.inf, 0.0],
            [-0.0, 0.0, -1.0],
        ]
    )
    np.testing.assert_array_equal(likeliest(logits), logits.argmax(-1))
    np.testing.assert_array_equal(likeliest(jnp.asarray(LOGITS)), LOGITS.argmax(-1))


def test_top_p_keeps_the_likeliest_token_of_any_distribution():
    logits = jnp.asarray([[0.0, 100.0, 0.0], [0.0, 0.0, 0.0]])
    kept = np.isfinite(keep_top_p(logits, 1e-6))
    assert kept[0].tolist() == [False, True, False] and kept[1].sum() == 1


def test_ngrams_beyond_the_text_are_not_blocked():
    tokens = jnp.asarray([[5, 6, 5, 0, 0, 6]])
    blocked = lambda length: np.flatnonzero(
        ~np.isfinite(block_repeated_ngrams(jnp.zeros((1, 9)), tokens, length, 2)[0])
    ).tolist()
    assert blocked(3) == [6] and blocked(1) == [] and blocked(0) == []


def test_draws_follow_the_probabilities():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    drawn = choose(
        jnp.tile(logits, (20_000, 1)),
        jnp.zeros((20_000, 4), bool),
        jax.random.split(jax.random.key(0), 20_000),
        Sampling(1.0),
    )
    shares = np.bincount(drawn, minlength=4) / 20_000
    np.testing.assert_allclose(
        shares, [0.5, 0.3, 0.15, 0.05], atol=0.015
    )  # 4 standard deviations of the largest share


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": 2},
        {"repetition_penalty": 0},
    ],
)
def test_impossible_settings_are_errors(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
