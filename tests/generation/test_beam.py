"""Beam search equals a plain reading of the paper's decoder, on a tiny random model."""

from pathlib import Path

import jax
import numpy as np
import pytest

from lora_jax.generation.beam import BeamSearch, beam_search
from lora_jax.io.weights import load_decoder
from lora_jax.models.decoder import Decoder

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoders"
PROMPT, NEW = [5, 9, 30, 7], 9


@pytest.fixture(scope="module")
def model():
    config, params = load_decoder(GOLDEN / "gpt2")
    return Decoder(config), params


def reference(model, params, eos_ids, search):
    """The published decoder in numpy: whole texts every step, python sets, no cache."""
    logits_of = jax.jit(lambda tokens, n: model.apply({"params": params}, tokens)[:, n - 1])
    beams, best = [([], 0.0)], (-np.inf, None)
    for count in range(NEW):
        rows = [PROMPT + made + [0] * (NEW - count) for made, _ in beams] + [
            [0] * (len(PROMPT) + NEW)
        ] * (search.beams - len(beams))
        logits = np.asarray(logits_of(np.asarray(rows), len(PROMPT) + count), np.float64)[
            : len(beams)
        ]
        for row, (made, _) in zip(logits, beams):
            for token in set(made):
                row[token] = (
                    row[token] * search.repetition_penalty
                    if row[token] < 0
                    else row[token] / search.repetition_penalty
                )
            n = search.no_repeat_ngram
            grams = {tuple(made[i : i + n]) for i in range(len(made) - n + 1)} if n else set()
            row[
                [gram[-1] for gram in grams if list(gram[:-1]) == made[len(made) - n + 1 :]]
            ] = -np.inf
            if count < search.min_length:
                row[list(eos_ids)] = -np.inf
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        every = sorted(
            (
                (score + log_p[b, t], b, t)
                for b, (_, score) in enumerate(beams)
                for t in range(log_p.shape[1])
            ),
            reverse=True,
        )
        new = [(beams[b][0] + [t], score) for score, b, t in every[: search.beams]]
        for made, score in new:
            if made[-1] in eos_ids and score / len(made) ** search.length_penalty > best[0]:
                best = (score / len(made) ** search.length_penalty, made[:-1])
        beams = [(made, -np.inf if made[-1] in eos_ids else score) for made, score in new]
        beams = [(made, score) for made, score in beams if score > -np.inf]
        if not beams:
            return best
    return max(
        [best] + [(score / NEW**search.length_penalty, made) for made, score in beams],
        key=lambda pair: pair[0],
    )


@pytest.mark.parametrize(
    ("eos_ids", "search"),
    [
        ((11, 23), BeamSearch(beams=4)),
        ((38, 3), BeamSearch(beams=3, length_penalty=0.0, no_repeat_ngram=2)),
        ((11,), BeamSearch(beams=1, no_repeat_ngram=0)),
        (
            (11, 2, 30),
            BeamSearch(beams=5, repetition_penalty=1.4, min_length=4, length_penalty=1.5),
        ),
    ],
)
def test_texts_and_scores_equal_the_published_decoder(model, eos_ids, search):
    made, score = beam_search(*model, {}, PROMPT, max_new=NEW, eos_ids=eos_ids, search=search)
    expected_score, expected = reference(*model, eos_ids, search)
    assert made == expected
    assert score == pytest.approx(expected_score, abs=1e-4)


def test_impossible_requests_are_errors(model):
    with pytest.raises(ValueError, match="end token"):
        beam_search(*model, {}, PROMPT, max_new=3, eos_ids=())
    with pytest.raises(ValueError, match="window of 64"):
        beam_search(*model, {}, PROMPT, max_new=61, eos_ids=(1,))
    with pytest.raises(ValueError, match="beams from 1"):
        BeamSearch(beams=0)
