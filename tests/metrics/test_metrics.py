"""Every metric against the official scorer's stored figures, textbook values, and the libraries'
own words when they are missing.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_jax.metrics import text_metrics
from lora_jax.metrics.table import METRICS, entities, metric, perplexity

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())
TEXTS, REFERENCES = GOLDEN["outputs"], GOLDEN["references"]


@pytest.mark.parametrize(
    ("name", "official", "unit"),
    [
        ("lowercase_bleu", "BLEU", 100),
        ("nist", "NIST", 1),
        ("coco_rouge_l", "ROUGE_L", 1),
        ("cider", "CIDEr", 1),
    ],
)
def test_scores_equal_the_e2e_scorers_on_several_references(name, official, unit):
    pytest.importorskip("sacrebleu")
    # The same sums in another order.
    assert metric(name).score(TEXTS, REFERENCES) == pytest.approx(
        GOLDEN["e2e"][official] * unit, rel=1e-12
    )


@pytest.mark.slow
def test_meteor_equals_the_e2e_scorers():
    pytest.importorskip("pycocoevalcap")
    assert metric("meteor").score(TEXTS, REFERENCES) == pytest.approx(
        GOLDEN["e2e"]["METEOR"], rel=1e-12
    )


def test_answers_score_as_squads_script_scores_them():
    predictions, references = zip(
        *((case["prediction"], case["references"]) for case in GOLDEN["answers"])
    )
    np.testing.assert_array_equal(
        text_metrics.exact_match_each(predictions, references),
        [c["exact_match"] for c in GOLDEN["answers"]],
    )
    np.testing.assert_allclose(
        text_metrics.squad_f1_each(predictions, references),
        [c["f1"] for c in GOLDEN["answers"]],
        rtol=1e-12,
    )


def test_sacrebleu_and_rouge_score_by_hand():
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    # One substitution in six words: TER 1/6. Longest common subsequence 5 of 6 and 6.
    one, other = ["the cat sat on the mat"], [["the cat lay on the mat"]]
    assert metric("ter").score(one, other) == pytest.approx(100 / 6)
    assert metric("rouge_l").score(one, other) == pytest.approx(5 / 6)
    assert metric("rouge_2").score(one, other) == pytest.approx(3 / 5)
    for name in ("bleu", "chrf"):
        assert metric(name).score(one, one and [one]) == pytest.approx(100)
    assert not metric("ter").higher_is_better


def test_texts_with_fewer_references_are_scored_against_those_they_have():
    pytest.importorskip("sacrebleu")
    texts, references = ["a b c d e", "f g h i j"], [["a b c d e"], ["x y z", "f g h i j"]]
    assert metric("bleu").score(texts, references) == pytest.approx(100)


def test_classification_metrics_are_the_textbooks():
    pytest.importorskip("sklearn")
    predicted, gold = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]
    # True positives 2, false positives 1, false negatives 1, true negatives 4.
    assert metric("f1").score(predicted, gold) == pytest.approx(2 / 3)
    assert metric("matthews").score(predicted, gold) == pytest.approx(
        (2 * 4 - 1) / math.sqrt(3 * 3 * 5 * 5)
    )
    assert metric("accuracy").score(predicted, gold) == 0.75
    assert metric("macro_f1").score(predicted, gold) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert metric("matthews").score([1, 1], [0, 1]) == 0.0
    # A third class makes F1 the mean over classes: F1 is 1 for classes 0 and 2, 2/3 for none.
    assert metric("f1").score([0, 2, 1], [0, 2, 2]) == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_correlations_equal_scipys_with_ties():
    from scipy.stats import pearsonr, spearmanr

    a, b = [1.0, 2.0, 2.0, 4.0, 5.0], [0.5, 3.0, 1.0, 1.0, 9.0]
    assert metric("pearson").score(a, b) == pytest.approx(pearsonr(a, b)[0])
    assert metric("spearman").score(a, b) == pytest.approx(spearmanr(a, b)[0])
    assert math.isnan(metric("pearson").score([1.0, 1.0], [1.0, 2.0]))


def test_entities_are_conlls():
    labels = ["B-PER", "I-PER", "O", "I-LOC", "I-LOC", "B-LOC", "I-PER"]
    assert entities(labels) == {("PER", 0, 2), ("LOC", 3, 5), ("LOC", 5, 6), ("PER", 6, 7)}
    # Three found, four wanted, two right.
    found = [["B-PER", "I-PER", "O", "B-LOC", "O", "B-LOC", "O"]]
    assert metric("token_f1").score(found, [labels]) == pytest.approx(2 * 2 / (3 + 4))


def test_perplexity_is_per_token_or_per_byte():
    assert perplexity(10 * math.log(7), 10) == pytest.approx(7)
    text = "né"
    assert perplexity(3 * math.log(2), len(text.encode())) == pytest.approx(2)
    with pytest.raises(ValueError, match="spread on"):
        perplexity(1.0, 0)


@pytest.mark.parametrize("name", [name for name, one in METRICS.items() if one.each is not None])
def test_the_score_of_a_set_is_the_mean_of_each(name):
    for module in ("rouge_score", "nltk"):
        pytest.importorskip(module)
    one = METRICS[name]
    pairs = (TEXTS, REFERENCES) if one.kind == "texts" else ([1, 0, 1], [1, 1, 1])
    assert one.score(*pairs) == pytest.approx(float(one.each(*pairs).mean()))


@pytest.mark.parametrize("name", METRICS)
def test_nothing_and_uneven_lists_are_errors(name):
    with pytest.raises(ValueError, match="a reference for every prediction and at least one"):
        METRICS[name].score([], [])


def test_an_unknown_name_and_a_missing_library_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="Nearest: 'matthews'"):
        metric("mathews")
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"pip install 'lora-jax\[tasks\]'"):
        metric("bleu").score(["a"], [["a"]])
