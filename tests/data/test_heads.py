"""What each head reads of an example: tags at the first token of a word, answers as spans of tokens,
choices one after the other.
"""

import numpy as np
import pytest

from lora_jax.data import RECIPES, Dataset, Example, encode
from lora_jax.data.tokenizers import load_tokenizer

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "film", "##s", "good", "##ness", "a", "what", "?"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    return load_tokenizer(folder)


def encoded(tokenizer, recipe, max_length, *values, labels=()):
    examples = tuple(Example(f"here:{n}", value) for n, value in enumerate(values))
    data = Dataset("given", RECIPES[recipe], {"train": examples}, labels, "", "")
    return encode(data, tokenizer, max_length)["train"]


def test_a_words_tag_is_at_its_first_token_and_nowhere_else(tokenizer):
    values = dict(words=["films", "films", "a", "goodness"], tags=["B-X", "I-X", "O", "B-X"])
    labels = ("B-X", "I-X", "O")
    whole = encoded(tokenizer, "token_classification", 16, values, labels=labels)
    # [CLS] film ##s film ##s a good ##ness [SEP]
    assert whole.tokens[0].tolist() == [2, 4, 5, 4, 5, 8, 6, 7, 3]
    assert whole.labels[0].tolist() == [-1, 0, -1, 1, -1, 2, 0, -1, -1]
    # A word that lost its second token keeps its tag; one that lost all has none.
    cut = encoded(tokenizer, "token_classification", 8, values, labels=labels)
    assert cut.labels[0].tolist() == [-1, 0, -1, 1, -1, 2, 0, -1] and cut.truncated == 1
    cut = encoded(tokenizer, "token_classification", 7, values, labels=labels)
    assert cut.labels[0].tolist() == [-1, 0, -1, 1, -1, 2, -1]


@pytest.mark.parametrize(
    ("text", "start", "max_length", "span"),
    [
        # [CLS] what ? [SEP] a good films a goodness [SEP]: film is token 6, ##s token 7.
        ("films", 7, 16, (6, 7)),
        ("a", 0, 16, (4, 4)),
        ("a", 13, 16, (8, 8)),
        # Where no start is given, the first place counts.
        ("a", -1, 16, (4, 4)),
        ("good films", 2, 16, (5, 7)),
        # Letters inside of a token: the token that holds them.
        ("oo", 3, 16, (5, 5)),
        ("goodness", 15, 16, (9, 10)),
        # Its last token is cut away, or all of it: no answer, not another one.
        ("goodness", 15, 11, (-1, -1)),
        ("goodness", 15, 10, (-1, -1)),
        ("films", 7, 8, (-1, -1)),
        ("good", 2, 8, (5, 5)),
        # Not a part of the context.
        ("nothing", -1, 16, (-1, -1)),
    ],
)
def test_an_answer_is_the_tokens_that_hold_it_whole(text, start, max_length, span, tokenizer):
    values = dict(
        question="what?",
        context="a good films a goodness",
        answers=[dict(text=text, start=start), dict(text="another", start=0)],
    )
    found = encoded(tokenizer, "qa", max_length, values)
    assert tuple(found.labels[0]) == span
    # Places in the text of the context's tokens alone: those of question and separators are -1.
    places = np.asarray(found.offsets[0])
    assert (places[:4] == -1).all() and (places[-1] == -1).all()
    assert places[4].tolist() == [0, 1] and len(places) == len(found.tokens[0])


def test_choices_follow_each_other_and_need_to_be_equally_many(tokenizer):
    values = dict(question="what?", choices=["a", "films"], answer=1)
    found = encoded(tokenizer, "multiple_choice", 16, values, values | {"answer": 0})
    assert [tokens.tolist() for tokens in found.tokens[:2]] == [
        [2, 9, 10, 3, 8, 3],
        [2, 9, 10, 3, 4, 5, 3],
    ]
    assert found.choices == 2 and found.labels.tolist() == [1, 0]
    assert found.lengths.tolist() == [7, 7]
    with pytest.raises(ValueError, match=r"has \[1, 2\]"):
        encoded(tokenizer, "multiple_choice", 16, values, values | {"choices": ["a"]})
