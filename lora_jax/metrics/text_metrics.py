"""Scores of generated texts against one or several right ones each.

All functions take texts and a list of references for each; those with `_each` give a score a text.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import re
import string
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lora_jax.metrics.table import library

Texts = Sequence[str]
References = Sequence[Sequence[str]]
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_BETA = 1.2  # recall counts this much more than precision in COCO's ROUGE-L
_SIGMA = 6.0  # of CIDEr-D's penalty on a difference in length


# --- Answers (Rajpurkar et al. 2016, SQuAD: evaluate-v1.1.py).


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and the articles a, an, the, with single spaces: as SQuAD's
    script compares answers.
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match_each(predictions: Texts, references: References) -> Float[np.ndarray, " examples"]:
    """1 where a prediction is one of its references after `normalize_answer`."""
    same = lambda a, b: float(normalize_answer(a) == normalize_answer(b))
    return _best(predictions, references, same)


def squad_f1_each(predictions: Texts, references: References) -> Float[np.ndarray, " examples"]:
    """F1 of the words that a prediction shares with the reference that suits it best."""

    def score(a: str, b: str) -> float:
        ours, theirs = normalize_answer(a).split(), normalize_answer(b).split()
        if not ours or not theirs:  # SQuAD 2.0's rule for questions without an answer.
            return float(ours == theirs)
        shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
        return 2 * shared / (len(ours) + len(theirs))

    return _best(predictions, references, score)


# --- sacrebleu and rouge-score.


def _sacrebleu(name: str, predictions: Texts, references: References, **options: Any) -> float:
    # The n-th reference of every text, for each n; None where a text has fewer.
    streams = list(itertools.zip_longest(*references))
    scorer = getattr(library("sacrebleu"), name)(**options)
    return float(scorer.corpus_score(list(predictions), streams).score)


def _rouge(name: str, predictions: Texts, references: References) -> np.ndarray:
    scorer: Any = library("rouge_score.rouge_scorer").RougeScorer([name], use_stemmer=True)
    if not _have_words(references):
        return np.full(len(predictions), np.nan)
    pairs = zip(predictions, references, strict=True)
    found = [scorer.score_multi(list(right), text)[name].fmeasure for text, right in pairs]
    return np.array(found, float)


def _have_words(references: References) -> bool:
    """Whether rouge-score finds a word in any right text, with a warning where it finds none in
    some: an equal text would score 0.
    """
    texts = [text for right in references for text in right if text.strip()]
    wordless = sum(re.search("[a-z0-9]", text.lower()) is None for text in texts)
    if wordless:
        warnings.warn(
            f"ROUGE finds no word in {wordless} of {len(texts)} references: rouge-score reads the "
            "letters a to z and digits alone. Whatever is compared with them scores 0, and all "
            "of them together nan. Score texts in other scripts with chrf.",
            stacklevel=4,
        )
    return wordless < len(texts) or not texts


# BLEU by sacrebleu's defaults (Post 2018), 0 to 100: mteval-v13a's tokens, letter case kept, four
# orders, exponential smoothing.
bleu = functools.partial(_sacrebleu, "BLEU")
# Letter case dropped: the BLEU of E2E's scorer (mteval-v13a), times 100, where every order has a
# match.
lowercase_bleu = functools.partial(_sacrebleu, "BLEU", lowercase=True)
# chrF2 (Popović 2015), 0 to 100: F of character n-grams up to 6, recall twice as heavy.
chrf = functools.partial(_sacrebleu, "CHRF")
# Translation edit rate (Snover et al. 2006), in percent, letter case dropped; lower is better.
ter = functools.partial(_sacrebleu, "TER")
# F1 of words, stemmed, with the reference that suits best (Lin 2004; rouge-score), of pairs of words,
# and of the longest common subsequence of words; NaN where no reference has a word that it knows.
rouge_1_each = functools.partial(_rouge, "rouge1")
rouge_2_each = functools.partial(_rouge, "rouge2")
rouge_l_each = functools.partial(_rouge, "rougeL")


# --- The E2E challenge's scorer (Dušek, Novikova & Rieser 2018): mteval-v13a and COCO's metrics.
# Written here because no package gives that scorer's figures by itself: nltk's corpus_nist is
# another number (3.076, not 3.427, on the texts of tests/golden/metrics.json), and pycocoevalcap
# cuts words with a Java program.


def nist(predictions: Texts, references: References) -> float:
    """NIST of order 5 (Doddington 2002), lower case, mteval-v13a's tokens: matches weigh as much as
    they tell.
    """
    tokens = library("sacrebleu.tokenizers.tokenizer_13a").Tokenizer13a()
    cut = lambda text: tuple(tokens(text.lower()).split())
    ours = [cut(text) for text in predictions]
    theirs = [[cut(text) for text in texts] for texts in references]

    counts: collections.Counter = collections.Counter()
    for text in itertools.chain.from_iterable(theirs):
        counts[()] += len(text)
        counts.update(gram for n in range(1, 6) for gram in _grams(text, n))

    # A match tells the more the rarer its last word is after the words before it.
    total = 0.0
    for n in range(1, 6):
        gained, made = 0.0, 0
        for text, texts in zip(ours, theirs, strict=True):
            limit = _largest([collections.Counter(_grams(other, n)) for other in texts])
            for gram, count in collections.Counter(_grams(text, n)).items():
                if hits := min(count, limit[gram]):
                    gained += hits * math.log2(counts[gram[:-1]] / counts[gram])
            made += len(text) - n + 1
        total += gained / made if made else 0.0

    # Half the score at two thirds of the references' length.
    mean_length = sum(sum(map(len, texts)) / len(texts) for texts in theirs)
    ratio = sum(map(len, ours)) / mean_length if mean_length else 0.0
    if ratio <= 0:
        return 0.0
    shortness = math.log(min(ratio, 1.0)) ** 2
    return total * math.exp(math.log(0.5) / math.log(1.5) ** 2 * shortness)


def coco_rouge_l_each(predictions: Texts, references: References) -> Float[np.ndarray, " examples"]:
    """ROUGE-L as COCO's scorer has it: the best precision and the best recall over the references,
    F with beta 1.2.
    """
    out = []
    for text, texts in zip(predictions, references, strict=True):
        ours = caption_words(text)
        theirs = [caption_words(other) for other in texts]
        common = [_longest_common(ours, other) for other in theirs]
        precision = max(common) / max(len(ours), 1)
        recall = max(n / max(len(other), 1) for n, other in zip(common, theirs))
        weighted = recall + _BETA**2 * precision
        out.append((1 + _BETA**2) * precision * recall / weighted if precision and recall else 0.0)
    return np.array(out)


def cider(predictions: Texts, references: References) -> float:
    """CIDEr-D (Vedantam, Zitnick & Parikh 2015), 0 to 10: cosine of tf-idf n-grams of orders 1 to
    4, over these references.
    """
    ours = [_all_grams(text) for text in predictions]
    theirs = [[_all_grams(text) for text in texts] for texts in references]
    documents = collections.Counter(
        gram for texts in theirs for gram in {gram for counts in texts for gram in counts}
    )
    known = math.log(len(theirs))

    def weigh(counts: collections.Counter) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * (known - math.log(max(1.0, documents[gram])))
        return vectors

    def likeness(a: list[dict], b: list[dict], gap: int) -> float:
        total = 0.0
        for first, second in zip(a, b):
            squares = [sum(x * x for x in vector.values()) for vector in (first, second)]
            norm = math.sqrt(squares[0] * squares[1])
            shared = [(x, second[gram]) for gram, x in first.items() if gram in second]
            product = sum(min(x, y) * y for x, y in shared)
            total += product / norm if norm else product
        return total / 4 * math.exp(-(gap**2) / (2 * _SIGMA**2))

    scores = []
    for counts, texts in zip(ours, theirs, strict=True):
        mine, pairs = weigh(counts), _pairs(counts)
        total = sum(likeness(mine, weigh(other), pairs - _pairs(other)) for other in texts)
        scores.append(10 * total / len(texts))
    return sum(scores) / len(scores)


def meteor(predictions: Texts, references: References) -> float:
    """METEOR 1.5 for English (Denkowski & Lavie 2014) by its own program, 0 to 1.

    Raises:
        ImportError: pycocoevalcap, which ships the program, is not installed.
        FileNotFoundError: there is no `java`.
    """
    from lora_jax.metrics.meteor import meteor_score

    join = lambda text: " ".join(caption_words(text))
    return meteor_score(
        [join(text) for text in predictions],
        [[join(text) for text in texts] for texts in references],
    )


# Abbreviations whose full stop is part of the word, as the Stanford tokenizer of COCO's scorer has
# them.
_ABBREVIATIONS = {
    "dr", "mr", "mrs", "ms", "prof", "st", "jr", "sr", "etc", "vs", "inc", "co", "corp", "no",
    "ave", "fig",
}  # fmt: skip
# The scorer drops round and curly brackets in upper case alone, and its tokens are lower case: they
# stay.
_DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}


def caption_words(text: str) -> list[str]:
    """The words that COCO's scorer compares: Penn Treebank tokens in lower case, without
    punctuation.

    By nltk's Treebank rules, with what sets the Stanford tokenizer apart on ordinary English. On
    unusual text (e-mail addresses, prices with a dash, 'y'all') the two can differ.
    """
    tokenizer = library("nltk.tokenize").TreebankWordTokenizer()
    text = text.replace("£", "# ").replace("\n", " ")
    text = re.sub(r"[\w.]+\.(?=\s)", lambda found: _split_stop(found.group()), text)
    words = [_BRACKETS.get(word, word).lower() for word in tokenizer.tokenize(text)]
    return [word for word in words if word not in _DROPPED]


def _split_stop(word: str) -> str:
    """'end.' as 'end .'; abbreviations keep their stop."""
    bare = word[:-1]
    initials = "." in bare.strip(".") and not bare[-1:].isdigit()
    keeps = not bare or bare.endswith(".") or initials or bare.lower() in _ABBREVIATIONS
    return word if keeps else f"{bare} ."


def _all_grams(text: str) -> collections.Counter:
    words = tuple(caption_words(text))
    return collections.Counter(gram for n in range(1, 5) for gram in _grams(words, n))


def _pairs(counts: collections.Counter) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 2)


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for position, other in enumerate(b, 1):
            before, row[position] = (
                row[position],
                before + 1 if word == other else max(row[position], row[position - 1]),
            )
    return row[-1]


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _largest(counts: Sequence[collections.Counter]) -> collections.Counter:
    total: collections.Counter = collections.Counter()
    for one in counts:
        total |= one
    return total


def _best(
    predictions: Texts, references: References, score: Callable[[str, str], float]
) -> np.ndarray:
    pairs = zip(predictions, references, strict=True)
    return np.array([max(score(text, other) for other in right) for text, right in pairs])
