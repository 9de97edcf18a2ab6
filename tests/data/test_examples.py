"""Task recipes: any source maps on a recipe's roles, prompts are rendered, splits are sound, wrong
rows are told.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lora_jax.data.completions import to_completions
from lora_jax.data.examples import load, read_examples
from lora_jax.data.recipes import RECIPES, recipe_named, render
from lora_jax.data.records import Record

SAMPLES: dict[str, dict[str, Any]] = {
    "classification": {"text": "fine film {n}", "label": "good"},
    "pair_classification": {"text": "a {n}", "text_pair": "b", "label": "same"},
    "regression": {"text": "fine {n}", "score": 2.5},
    "pair_regression": {"text": "fine {n}", "text_pair": "b", "score": "4"},
    "token_classification": {
        "words": ["Bob", "works", "at", "Big", "Bank", "{n}"],
        "tags": ["B-PER", "O", "O", "B-ORG", "I-ORG", "O"],
    },
    "qa": {
        "context": "Bob sat {n}.",
        "question": "Who sat?",
        "answers": {"text": ["Bob"], "answer_start": [0]},
    },
    "multiple_choice": {"question": "Which {n}?", "choices": ["one", "two"], "answer": "B"},
    "instruction": {"instruction": "Add {n}", "input": "", "output": "2"},
    "chat": {
        "messages": [
            {"role": "user", "content": "Hi {n}"},
            {"role": "assistant", "content": "Hello"},
        ]
    },
    "summarisation": {"text": "Long {n}.", "summary": "Short."},
    "translation": {"source": "ja {n}", "target": "yes"},
    "code": {"task": "print {n}", "code": "print()"},
    "creative": {"prompt": "A poem {n}", "text": "Roses"},
    "table_to_text": {
        "table": ["name : Cocum", "area : {n}"],
        "text": "Cocum is here.",
        "references": ["Cocum is here.", "Here is Cocum."],
    },
    "completion": {"prompt": "1 {n}", "completion": ["2", "two"]},
}
RENDERED = {
    "classification": ("fine film 7\nClass:", "good"),
    "token_classification": ("Bob works at Big Bank 7\nEntities:", "Bob - PER, Big Bank - ORG"),
    "qa": ("Bob sat 7.\nQuestion: Who sat?\nAnswer:", "Bob"),
    "multiple_choice": ("Which 7?\nA. one\nB. two\nAnswer:", "B"),
    "instruction": ("### Instruction:\nAdd 7\n\n### Response:", "2"),
    "chat": ("Hi 7", "Hello"),
    "table_to_text": ("name : Cocum\narea : 7\nText:", "Cocum is here."),
    "regression": ("fine 7\nScore:", "2.5"),
    "completion": ("1 7", "2"),
}


def rows(name: str, count: int = 60) -> list[dict[str, Any]]:
    out = []
    for n in range(count):
        row = json.loads(json.dumps(SAMPLES[name]).replace("{n}", str(n)))
        if "label" in row and n % 2:
            row["label"] = "bad"
        out.append(row)
    return out


def write(path: Path, records: list[Any]) -> str:
    path.write_text(
        "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records)
        + "\n"
    )
    return str(path)


def test_every_recipe_has_a_sample_here():
    assert set(SAMPLES) == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_file_becomes_splits_without_overlap_and_prompts(name, tmp_path):
    data = load(write(tmp_path / "a.jsonl", [*rows(name), rows(name)[3]]), name)
    assert sum(map(len, data.splits.values())) == 60 and "1 rows with a repeated input" in data.note
    completions = to_completions(data)
    prompts = {split: set(part.prompts) for split, part in completions.items()}
    assert not prompts["train"] & (prompts["test"] | prompts["validation"])
    whole = {
        prompt: n
        for part in completions.values()
        for n, prompt in zip(zip(part.completions, part.references), part.prompts)
    }
    if name in RENDERED:
        prompt, answer = RENDERED[name]
        assert whole[prompt][0] in (answer, "bad")
    if name == "table_to_text":
        assert whole[RENDERED[name][0]][1] == ("Cocum is here.", "Here is Cocum.")


def test_columns_paths_and_templates_map_any_record(tmp_path):
    records = [
        {
            "input": [
                {"role": "system", "content": "Sort."},
                {"role": "user", "content": f"item {n}"},
            ],
            "ideal": ["x", "y"][n % 2],
        }
        for n in range(80)
    ]
    columns = {"text": "input.-1.content", "label": "ideal"}
    data = load(write(tmp_path / "a.jsonl", records), "classification", columns=columns)
    part = to_completions(data, prompt="Is {text} x or y?", completion=" {label}!")["train"]
    assert part.prompts[0].startswith("Is item ") and part.completions[0] in (" x!", " y!")
    joined = load(
        write(tmp_path / "b.jsonl", records),
        "classification",
        columns={**columns, "text": "ideal+input.1.content"},
    )
    assert joined.splits["train"][0].values["text"].partition("\n")[2].startswith("item ")
    with pytest.raises(ValueError, match="names 'txt'. Nearest: 'text'"):
        to_completions(data, prompt="{txt}")


def test_published_splits_are_kept_and_hidden_labels_are_not_used(tmp_path):
    for split, label in (("train", None), ("dev", None), ("test", -1)):
        part = [
            dict(row, text=f"{split} {row['text']}") | ({} if label is None else {"label": label})
            for row in rows("classification")
        ]
        write(tmp_path / f"{split}.jsonl", part)
    data = load(str(tmp_path), "classification")
    assert {row.values["text"].split()[0] for row in data.splits["test"]} == {"dev"}
    assert {row.values["text"].split()[0] for row in data.splits["validation"]} == {"train"}
    assert (
        "test split" in data.note
        and "has no labels" in data.note
        and data.label_names == ("bad", "good")
    )


@pytest.mark.parametrize(("scores", "hidden"), [((-1.0, -1.0), True), ((-1.0, 2.0), False)])
def test_scores_are_hidden_where_all_of_a_split_are_minus_one(scores, hidden):
    parts = {"train": (0.0,) * 40, "validation": (-1.0, 0.5), "test": scores}
    data = load(
        {
            split: [{"text": f"{split} {n}", "score": score} for n, score in enumerate(values)]
            for split, values in parts.items()
        },
        "regression",
    )
    assert ("test split of rows has no labels" in data.note) is hidden
    serves = "validation" if hidden else "test"
    assert data["test"][0].values == {"text": f"{serves} 0", "score": -1.0}


WRONG = [
    ("classification", {"text": "x"}, "needs the field 'label'", "no field 'label'"),
    ("classification", {"text": " ", "label": "good"}, "text that is not empty", "an empty text"),
    (
        "classification",
        {"text": "x", "label": ""},
        "a class name or a whole number",
        "an empty label",
    ),
    (
        "regression",
        {"text": "x", "score": "high"},
        "needs to be a number",
        "a score that is no number",
    ),
    (
        "regression",
        {"text": "x", "score": float("nan")},
        "needs to be finite",
        "a score that is no number",
    ),
    (
        "token_classification",
        {"words": ["a", "b"], "tags": ["O"]},
        "2 words need as many tags",
        "another number of tags",
    ),
    ("qa", {"context": "a", "question": "b", "answers": []}, "needs an answer", "an empty answer"),
    (
        "qa",
        {"context": "a", "question": "b", "answers": "zebra"},
        "does not stand in the context",
        "an answer outside its context",
    ),
    (
        "qa",
        {
            "context": "a Bob",
            "question": "b",
            "answers": {"text": ["Bob"], "answer_start": [0]},
        },
        "does not stand at letter 0",
        "an answer at another place",
    ),
    (
        "multiple_choice",
        {"question": "q", "choices": ["one", "two"], "answer": "E"},
        "one of 2 choices",
        "an unknown answer",
    ),
    (
        "chat",
        {"messages": [{"role": "user", "content": "Hi"}]},
        "the last an assistant's",
        "no conversation",
    ),
    ("summarisation", {"text": "x", "summary": ""}, "not empty", "an empty summary"),
    ("completion", "{broken", "not JSON", "broken JSON"),
]


@pytest.mark.parametrize(("name", "record", "words", "reason"), WRONG)
def test_a_wrong_row_is_an_error_with_its_line_or_is_counted(name, record, words, reason, tmp_path):
    path = write(tmp_path / "a.jsonl", [*rows(name), record])
    with pytest.raises(ValueError, match=rf"a\.jsonl:61: .*{words}"):
        load(path, name)
    data = load(path, name, on_error="skip")
    assert sum(map(len, data.splits.values())) == 60
    assert data.left_out == f"1 rows left out: 1 with {reason} ({path}:61)."


def test_labels_that_the_config_does_not_know_name_the_row(tmp_path):
    path = write(tmp_path / "a.jsonl", rows("classification"))
    with pytest.raises(
        ValueError, match=r"a\.jsonl:\d+: a label needs to be one of good, great, but 'bad' came"
    ):
        load(path, "classification", label_names=["good", "great"])
    kept = load(path, "classification", label_names=["good", "great"], on_error="skip")
    assert "30 with an unknown label" in kept.left_out and kept.label_names == ("good", "great")


def test_nothing_left_after_filtering_says_what_was_left_out(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"txt": "a", "label": "b"}] * 30)
    with pytest.raises(
        ValueError, match=r"'train' is empty .*30 rows left out: 30 with no field 'text'"
    ):
        load(path, "classification", on_error="skip", label_names=("a", "b"))


def test_a_capped_file_keeps_the_same_few_examples_whatever_comes_after(tmp_path):
    path = write(tmp_path / "a.jsonl", rows("completion", 3000))
    few = load(path, "completion", limit=40)
    more = load(path, "completion", limit=80)
    whole = load(path, "completion")
    assert len(few["train"]) == 40
    # A cap of the training set leaves what it is scored on as it is.
    assert all(few[split] == whole[split] for split in ("validation", "test"))
    assert {row.place for row in few.splits["train"]} <= {row.place for row in more.splits["train"]}
    # Which ones is part of every recorded result: those of the smallest hashes.
    by_hash = lambda row: hashlib.sha256(whole.recipe.input_text(row.values).encode()).digest()
    smallest = sorted(whole["train"], key=by_hash)[:40]
    assert sorted(few["train"], key=by_hash) == smallest


def test_pairs_of_one_text_and_questions_of_one_context_stay_together(tmp_path):
    records = [
        {"context": f"Bob and Ann {n // 4}.", "question": f"Who {n}?", "answers": "Bob"}
        for n in range(120)
    ]
    data = load(write(tmp_path / "a.jsonl", records), "qa")
    where = {split: {row.values["context"] for row in part} for split, part in data.splits.items()}
    assert not where["train"] & where["test"] and not where["train"] & where["validation"]


def test_answers_of_all_published_shapes_are_understood():
    def values_of(recipe, fields):
        return recipe_named(recipe).read(Record("here", fields), {}).values

    three = {"question": "q", "choices": ["one", "two", "three"]}
    for answer in (2, "2", "C", "c) three", "three", ["c) three"]):
        assert values_of("multiple_choice", three | {"answer": answer})["answer"] == 2
    for choices in (
        {"text": ["one", "two"], "label": ["A", "B"]},
        {"choice_A": "one", "choice_B": "two"},
    ):
        asked = {"question": "q", "choices": choices, "answer": "B"}
        assert values_of("multiple_choice", asked)["choices"] == ["one", "two"]
    answers = [{"text": "Bob", "answer_start": 0}]
    squad = values_of("qa", {"context": "Bob", "question": "q", "answers": answers})
    assert squad["answers"] == [{"text": "Bob", "start": 0}]


def test_braces_in_records_are_left_alone():
    assert render("{text}", {"text": "{label} {}"}) == "{label} {}"


def test_how_many_examples_were_cut_is_said():
    import numpy as np

    from lora_jax.data.completions import EncodedCompletions
    from lora_jax.data.encoding import cut_note

    part = lambda truncated: EncodedCompletions(
        [np.ones(2, np.int32)] * 5, np.ones(5, np.int32), 2, 0, truncated
    )
    assert (
        cut_note({"train": part(3), "test": part(0)}, 2)
        == "Examples cut to max_length 2: 3 of 5 train."
    )
    assert cut_note({"train": part(0)}, 2) == ""


# --- splits and fingerprints ---------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("where", [0, 17, 60])
def test_a_line_more_moves_no_other_example(name, where, tmp_path):
    given = rows(name, 61)
    new = given.pop()
    before = load(write(tmp_path / "a.jsonl", given), name)
    after = load(write(tmp_path / "b.jsonl", [*given[:where], new, *given[where:]]), name)
    moved = 0
    for split in before.splits:
        old = [row.values for row in before[split]]
        now = [row.values for row in after[split]]
        moved += len(now) - len(old)
        assert [values for values in now if values in old] == old
    assert moved == 1


def test_completions_have_a_fingerprint_of_their_texts(tmp_path):
    data = load(write(tmp_path / "a.jsonl", rows("completion")), "completion")
    part, other = to_completions(data)["train"], to_completions(data, prompt="{prompt}?")["train"]
    assert part.fingerprint == to_completions(data)["train"].fingerprint != other.fingerprint


def test_repeated_inputs_are_kept_where_nothing_is_split(tmp_path):
    path = write(tmp_path / "a.jsonl", [*rows("completion"), rows("completion")[3]])
    assert len(read_examples(path, "completion")) == 61


def test_rows_in_memory_are_a_source(tmp_path):
    given = rows("classification")
    data = load(given)
    path = write(tmp_path / "a.jsonl", given)
    assert data.fingerprint == load(path).fingerprint and data["test"][0].place.startswith("all[")
    parts = load({"train": given, "test": [dict(text="new", label="good")]})
    assert [row.values["text"] for row in parts["test"]] == ["new"]
    with pytest.raises(ValueError, match="train at least, but 'tset' came"):
        load({"tset": given})


def test_an_empty_template_is_a_prompt_of_nothing():
    """As QLoRA trains on whole threads: it was once taken for none, and the prompt was the text."""
    data = load([dict(prompt=f"p{n}", completion=f"c{n}") for n in range(60)], "completion")
    rendered = to_completions(data, prompt="")
    assert set(rendered["train"].prompts) == {""} and "c0" in rendered["train"].completions
    assert to_completions(data)["train"].prompts[0].startswith("p")


# --- values --------------------------------------------------------------------------------------


def test_numbers_are_written_as_they_are(tmp_path):
    numbers = [1234567.5, 0.1, 4.0, 7, 1e-7]
    given = [dict(prompt=f"p {n}", completion=numbers[n % 5]) for n in range(60)]
    data = load(write(tmp_path / "a.jsonl", given), "completion")
    texts = {row.values["completion"] for part in data.splits.values() for row in part}
    assert texts == {"1234567.5", "0.1", "4", "7", "0.0000001"}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("regression", dict(score=1e39), "finite in float32, but 1e[+]39"),
        ("multiple_choice", dict(answer="²"), "one of 2 choices .* but '²'"),
        ("qa", dict(answers=dict(text=None)), "answers is of a kind that cannot be read"),
        ("qa", dict(answers=[3, "Bob"]), "answers need to be texts"),
        ("completion", dict(completion=float("nan")), "completion needs to be a text, but nan"),
        ("chat", dict(messages=[dict(role="user", content="\ud800"), dict(role="assistant", content="x")]), "half a character"),
    ],
)  # fmt: skip
def test_values_that_no_array_or_text_can_hold_are_wrong_rows(name, change, words, tmp_path):
    path = write(tmp_path / "a.jsonl", [*rows(name), {**rows(name)[0], **change}])
    with pytest.raises(ValueError, match=rf"a\.jsonl:61: .*{words}"):
        load(path, name)
    assert "1 rows left out" in load(path, name, on_error="skip").left_out


def test_a_letter_of_a_text_is_no_field(tmp_path):
    path = write(tmp_path / "a.jsonl", rows("classification"))
    with pytest.raises(ValueError, match="needs the field 'text.0'"):
        load(path, columns=dict(text="text.0"))


@pytest.mark.parametrize("template", ["{text", "text}", "{text:d}", "{text!r}", "{}"])
def test_templates_that_are_none_say_so(template):
    with pytest.raises(ValueError, match="[tT]emplate"):
        render(template, {"text": "a"})


def test_doubled_braces_are_braces():
    assert render("{{{text}}}", {"text": "a"}) == "{a}"
