"""Every metric against the official scorer's stored figures, textbook values, and the libraries'
own words when they are missing.
"""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lora_jax.metrics import text_metrics
from lora_jax.metrics.comparison import aligned, intervals, intervals_over_seeds, verdict
from lora_jax.metrics.predictions import (
    Prediction,
    Predictions,
    load_predictions,
    save_predictions,
)
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


@pytest.mark.long
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
    # SQuAD 2.0's questions without an answer.
    none = text_metrics.squad_f1_each(["", "a dog", "the"], [[""], [""], ["cat", "an"]])
    assert none.tolist() == [1, 0, 1]


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
    # Two labels that are not 0 and 1: none of them is the one that F1 is of.
    assert metric("f1").score([1, 2, 2, 1], [1, 2, 1, 1]) == pytest.approx((4 / 5 + 2 / 3) / 2)


def rows(predicted, gold, **more):
    found = [
        Prediction(str(n), 0.0, 1.0, 0.0, *pair) for n, pair in enumerate(zip(predicted, gold))
    ]
    return Predictions("test", ("f1",), tuple(found), **more)


def test_the_formula_of_f1_follows_from_the_task_not_from_the_labels_that_occur(
    tmp_path, monkeypatch
):
    pytest.importorskip("sklearn")
    predicted, gold = [0, 1, 1, 2], [0, 1, 0, 2]
    # F1 of class 0 is 2 * 1 / (1 + 2), of class 1 2 * 1 / (2 + 1), of class 2 1.
    three = rows(predicted, gold, classes=3)
    score = three.scored_by("f1")
    assert score(range(4)) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    # Rows without class 2 are still rows of a task with three: the mean over classes 0 and 1.
    assert score([0, 1, 2]) == three.at([0, 1, 2]).scored_by("f1")(range(3)) == pytest.approx(2 / 3)
    assert score([0, 0]) == 1.0
    # Of a task with two classes it is that of class 1, also where no row has it (0, as scikit-learn).
    two = rows([0, 1, 1, 0], [0, 1, 0, 1], classes=2).scored_by("f1")
    assert two(range(4)) == pytest.approx(2 * 1 / (2 + 2)) and two([0]) == 0.0
    assert two([0, 1]) == 1.0
    # A file that does not say is of as many classes as all its rows have; a new one says.
    unsaid = rows(predicted, gold).scored_by("f1")
    assert (
        unsaid([0, 1, 2]) == score([0, 1, 2]) and rows([0, 0], [0, 1]).scored_by("f1")([0]) == 0.0
    )
    path = save_predictions(tmp_path / "p.jsonl", three)
    assert load_predictions(path) == three
    # Of the marks that end a line for Python, JSON lines escape the ASCII ones alone.
    lines = rows(["a\u2028b", "\x85"], [["\n\r"], ["\x1c\u2029"]])
    assert load_predictions(save_predictions(tmp_path / "p.jsonl", lines)) == lines
    save_predictions(path, three)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            save_predictions(path, replace(three, rows=()))
    assert load_predictions(path) == three and list(tmp_path.iterdir()) == [path]
    # Called by itself it goes by the labels, unless told.
    assert metric("f1").score([0, 1], [0, 1], classes=3) == 1.0
    assert metric("f1").score([0, 1, 1], [0, 1, 0], classes=3) == pytest.approx(2 / 3)


def test_predictions_without_the_number_of_classes_are_read(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"split": "test", "metrics": ["f1"]}\n')
    assert load_predictions(tmp_path / "p.jsonl") == Predictions("test", ("f1",), ())


def test_examples_that_stand_twice_are_compared_each_with_its_like():
    first, second = (
        Predictions(
            "test", (), tuple(Prediction(name, float(n), 1.0, 0.0) for n, name in enumerate(ids))
        )
        for ids in ("aab", "bacaa")
    )
    ours, theirs = aligned(first, second)
    assert [row.id for row in ours.rows] == [row.id for row in theirs.rows] == ["a", "a", "b"]
    assert theirs.column("loss").tolist() == [1.0, 3.0, 0.0]


def test_the_interval_over_seeds_and_examples_is_that_of_the_mean_and_wider_than_over_examples():
    draw = np.random.default_rng(0)
    ids = [str(n) for n in range(50)]

    def run(shift, order):
        losses = shift + draw.random(50)
        rows = [Prediction(ids[n], float(losses[n]), 1.0, float(losses[n] < 1)) for n in order]
        return Predictions("test", ("accuracy",), tuple(rows))

    runs = [run(0.2, range(50)), run(0.5, reversed(range(50))), run(0.8, range(50))]
    found = intervals_over_seeds(runs)
    assert set(found) == {"loss", "accuracy"}
    mean = np.mean([one.column("loss").mean() for one in runs])
    assert found["loss"].value == pytest.approx(mean)
    alone = intervals(runs[0])["loss"]
    assert found["loss"].high - found["loss"].low > 2 * (alone.high - alone.low)
    with pytest.raises(ValueError, match="same examples"):
        intervals_over_seeds([runs[0], runs[1].at(range(20))])


def test_a_winner_is_named_below_one_in_twenty_alone():
    assert verdict("loss", -0.4, 0.051).startswith("cannot tell (loss -0.4")
    assert verdict("accuracy", -0.4, 0.049).startswith("second better")


def test_rouge_says_how_many_texts_it_cannot_read():
    pytest.importorskip("rouge_score")
    score = metric("rouge_l").score
    with pytest.warns(UserWarning, match="no word in 1 of 3 references"):
        # The second text is equal and scores 0, as rouge-score has it.
        assert score(["a cat", "猫です"], [["a cat", "a dog"], ["猫です"]]) == 0.5
    with pytest.warns(UserWarning, match="no word in 2 of 2 references"):
        assert math.isnan(score(["猫", "犬"], [["猫"], ["犬"]]))
    # A prediction in another script, or nothing, is wrong and no more; blank references are blank.
    assert score(["猫", ""], [["a cat"], ["a dog"]]) == 0.0 == score([""], [[" "]])
    assert metric("chrf").score(["猫です"], [["猫です"]]) == pytest.approx(100)


def test_correlations_equal_scipys_with_ties():
    from scipy.stats import pearsonr, spearmanr

    a, b = [1.0, 2.0, 2.0, 4.0, 5.0], [0.5, 3.0, 1.0, 1.0, 9.0]
    assert metric("pearson").score(a, b) == pytest.approx(pearsonr(a, b)[0])
    assert metric("spearman").score(a, b) == pytest.approx(spearmanr(a, b)[0])
    assert math.isnan(metric("pearson").score([1.0, 1.0], [1.0, 2.0]))
    # The mean of three times 0.1 is not 0.1: a constant all the same.
    for name in ("pearson", "spearman"):
        for constant in ([0.1] * 3, [1e300] * 3, [-7.3e-300] * 3, [0.0] * 3):
            assert math.isnan(metric(name).score(constant, [1.0, 2.0, 4.0]))
            assert math.isnan(metric(name).score([1.0, 2.0, 4.0], constant))
        assert math.isnan(metric(name).score([1.0], [2.0]))
        assert math.isnan(metric(name).score([1.0, math.nan, 2.0], [1.0, 2.0, 3.0]))
    # Squares of these are infinite, or 0.
    for size in (1e-200, 1e200):
        scaled = [size * x for x in a]
        assert metric("pearson").score(scaled, b) == pytest.approx(pearsonr(a, b)[0])


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
    if METRICS[name].kind == "texts":
        with pytest.raises(ValueError, match="1 of 2 have none, the first at position 1"):
            METRICS[name].score(["a", "b"], [["a"], []])


def test_an_unknown_name_and_a_missing_library_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="Nearest: 'matthews'"):
        metric("mathews")
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"pip install 'lora-jax\[tasks\]'"):
        metric("bleu").score(["a"], [["a"]])
