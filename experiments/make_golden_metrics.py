"""Writes tests/golden/metrics.json: texts with several references, and what the official scorers
say about them.

python experiments/make_golden_metrics.py E2E_METRICS

E2E_METRICS is a checkout of github.com/tuetschek/e2e-metrics (commit 1b9c4d8), with its Java
programs; it needs `future`, `numpy` and `matplotlib`. BLEU and NIST are its pymteval.py
(mteval-v13a), METEOR, ROUGE-L and CIDEr its copy of COCO's scorer. Answers are scored by the
functions of SQuAD's evaluate-v1.1.py, written out below as published. The texts are our own, in the
manner of that data set.
"""

import collections
import json
import random
import re
import string
import sys
from pathlib import Path

NAMES = [
    "The Mill",
    "Blue Spice",
    "Cocum",
    "The Punter",
    "Wildwood",
    "Green Man",
    "Zizzi",
    "Fitzbillies",
]
FOODS = ["Italian", "Chinese", "fast", "Indian", "English"]
PLACES = ["by the riverside", "in the city centre", "near the park"]


def texts(rng: random.Random) -> tuple[list[str], list[list[str]]]:
    """Forty outputs and one to four references each."""
    outputs, references = [], []
    for n in range(40):
        name, food, place, stars = (
            rng.choice(NAMES),
            rng.choice(FOODS),
            rng.choice(PLACES),
            rng.randint(1, 5),
        )
        forms = [
            f"{name} is a {food} restaurant {place}. It has a customer rating of {stars} out of 5.",
            (
                f"There's a family-friendly place {place} called {name}, which serves {food} food "
                f"for £20-{20 + stars}."
            ),
            f"{name} serves {food} food; it isn't expensive ({stars} stars), and it's {place}!",
            f'Rated {stars} out of 5, "{name}" offers {food} dishes {place}. Children are welcome.',
            (
                f"If you like {food} food, try {name}: it's {place}, and its rating is {stars}. "
                "Don't miss it."
            ),
        ]
        rng.shuffle(forms)
        outputs.append(
            forms[0]
            if n % 3
            else forms[0].replace("food", "cuisine").replace(" is ", " was ").lower()
        )
        references.append(forms[1 : 2 + n % 4])
    return outputs, references


def e2e_scores(folder: str, outputs: list[str], references: list[list[str]]) -> dict[str, float]:
    """What measure_scores.py prints, with all digits."""
    sys.path.insert(0, folder)
    import measure_scores

    coco = measure_scores.run_coco_eval(references, outputs)
    return dict(coco.eval) | measure_scores.run_pymteval(references, outputs)


# As in
# https://worksheets.codalab.org/rest/bundles/0x6b567e1cf2e041ec80d7098f031c5c9e/contents/blob/
# (evaluate-v1.1.py).
def normalize_answer(s):
    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def f1_score(prediction, ground_truth):
    prediction_tokens = normalize_answer(prediction).split()
    ground_truth_tokens = normalize_answer(ground_truth).split()
    common = collections.Counter(prediction_tokens) & collections.Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


ANSWERS = [
    ("the Eiffel Tower", ["Eiffel Tower", "tower"]),
    ("in 1989, Berlin", ["1989"]),
    ("A cat; a dog", ["cat and dog", "The cat, the dog."]),
    ("nothing", ["something"]),
    ("U.S.A.", ["USA", "United States"]),
    ("42 km", ["42 kilometres", "about 42 km"]),
]


if __name__ == "__main__":
    outputs, references = texts(random.Random(0))
    answers = [
        {
            "prediction": prediction,
            "references": gold,
            "exact_match": max(
                float(normalize_answer(prediction) == normalize_answer(g)) for g in gold
            ),
            "f1": max(f1_score(prediction, g) for g in gold),
        }
        for prediction, gold in ANSWERS
    ]
    golden = {
        "outputs": outputs,
        "references": references,
        "e2e": e2e_scores(sys.argv[1], outputs, references),
        "answers": answers,
    }
    out = Path(__file__).parents[1] / "tests" / "golden" / "metrics.json"
    out.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    print(golden["e2e"])
