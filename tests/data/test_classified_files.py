"""Files and folders of classified texts: splits, classes, what is no data, and what wrong rows
get.
"""

import json
from pathlib import Path

import pytest

from lora_jax.data import Dataset, load, split_of

TEXTS = [f"text number {i}" for i in range(100)]
WORDS = dict(label_names=("bad", "good"))


def write_csv(path: Path, rows: list[str], header: str = "text,label") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def numbered(path: Path) -> str:
    return write_csv(path, [f"{text},{i % 3}" for i, text in enumerate(TEXTS)])


def texts_of(data: Dataset, split: str) -> list[str]:
    return [row.values["text"] for row in data[split]]


def labels_of(data: Dataset) -> dict[str, str]:
    return {
        row.values["text"]: row.values["label"] for part in data.splits.values() for row in part
    }


def test_one_csv_is_split_by_text_hash_after_removing_repeated_texts(tmp_path):
    rows = [f"{text},{i % 3}" for i, text in enumerate(TEXTS)]
    data = load(write_csv(tmp_path / "a.csv", [*rows, rows[5], "text number 7,0"]))
    for split in data.splits:
        assert texts_of(data, split) == [text for text in TEXTS if split_of(text) == split]
    assert labels_of(data) == {text: str(i % 3) for i, text in enumerate(TEXTS)}
    assert data.note == "2 rows with a repeated input left out."


def test_csv_tsv_and_jsonl_of_the_same_rows_give_the_same_examples(tmp_path):
    rows = [(f'a, "quoted" text {i}', f"pair {i}", ["no", "yes"][i % 2]) for i in range(80)]
    quoted = [[field.replace('"', '""') for field in row] for row in rows]
    header = ("first", "second", "answer")
    write_csv(
        tmp_path / "a.csv",
        [",".join(f'"{field}"' for field in row) for row in quoted],
        ",".join(header),
    )
    tabbed = ["\t".join(f'"{field}"' for field in row) for row in quoted]
    write_csv(tmp_path / "a.tsv", tabbed, "\ufeff" + "\t".join(header))
    lines = [json.dumps(dict(zip(header, row), extra=1)) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    columns = dict(text="first", text_pair="second", label="answer")
    csv, tsv, jsonl = (
        load(str(tmp_path / f"a.{suffix}"), "pair_classification", columns=columns)
        for suffix in ("csv", "tsv", "jsonl")
    )
    assert csv.label_names == ("no", "yes") and csv["test"][0].values["text_pair"]
    assert csv.fingerprint == tsv.fingerprint == jsonl.fingerprint


def test_a_folder_is_taken_as_it_is_and_shared_texts_are_noted(tmp_path):
    write_csv(tmp_path / "train.csv", ["a,0", "b,1", "b,1"])
    write_csv(tmp_path / "validation.csv", ["c,1"])
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "d", "label": 0}')
    data = load(str(tmp_path))
    assert {split: texts_of(data, split) for split in data.splits} == {
        "train": ["a", "b", "b"],
        "validation": ["c"],
        "test": ["a", "d"],
    }
    assert data.note == "1 of 2 test inputs are in the train split too."


def test_labels_are_sorted_as_numbers_when_all_are_numbers(tmp_path):
    rows = [f"{text},{i % 11 + 1}" for i, text in enumerate(TEXTS)]
    names = load(write_csv(tmp_path / "a.csv", rows)).label_names
    assert names == tuple(str(i) for i in range(1, 12))


def test_declared_names_may_be_written_as_names_or_as_ids(tmp_path):
    rows = [f"{text},{['bad', '1'][i % 2]}" for i, text in enumerate(TEXTS)]
    data = load(write_csv(tmp_path / "a.csv", rows), **WORDS)
    assert labels_of(data) == {text: ["bad", "good"][i % 2] for i, text in enumerate(TEXTS)}


def test_01_and_1_are_one_class(tmp_path):
    rows = [f"{text},{['0', '01', '1'][i % 3]}" for i, text in enumerate(TEXTS)]
    assert load(write_csv(tmp_path / "a.csv", rows)).label_names == ("0", "1")


@pytest.mark.parametrize("pair", [("1", "1.0"), ("Pos", "pos"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_differ_in_spelling_alone_are_kept_apart_with_a_note(tmp_path, pair):
    rows = [f"{text},{[*pair, 'x'][i % 3]}" for i, text in enumerate(TEXTS)]
    data = load(write_csv(tmp_path / "a.csv", rows))
    assert len(data.label_names) == 3
    told = "Classes that differ in spelling alone are kept apart: "
    assert data.note in (f"{told}{a!r}, {b!r}." for a, b in (pair, pair[::-1]))


def test_digits_of_other_scripts_are_names(tmp_path):
    rows = [f"{text},{['①', '²', '٣'][i % 3]}" for i, text in enumerate(TEXTS)]
    assert load(write_csv(tmp_path / "a.csv", rows)).label_names == ("²", "٣", "①")


def test_minus_one_is_a_class_where_it_is_declared_and_no_label_elsewhere(tmp_path):
    rows = [json.dumps(dict(text=text, label=i % 3 - 1)) for i, text in enumerate(TEXTS)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(rows))
    path = str(path)
    with pytest.raises(ValueError, match=r"a\.jsonl:1: a label is needed.* if -1 is a class, name"):
        load(path)
    kept = load(path, on_error="skip")
    assert "34 rows left out: 34 with no label" in kept.left_out and len(labels_of(kept)) == 66
    declared = load(path, label_names=("-1", "0", "1"))
    assert labels_of(declared) == {text: str(i % 3 - 1) for i, text in enumerate(TEXTS)}


def test_texts_longer_than_the_csv_modules_limit_are_read(tmp_path):
    rows = [f"{text} {'word ' * 30_000},{i % 2}" for i, text in enumerate(TEXTS[:40])]
    assert len(labels_of(load(write_csv(tmp_path / "a.csv", rows)))) == 40


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            ["a,0"],
            dict(columns=dict(text="txet")),
            r"a\.csv:2: a row needs the field 'txet', but has 'text', 'label'. Nearest: 'text'",
        ),
        (["a,0", "b,1,2"], {}, r"a\.csv:3: a row needs 2 fields \(text, label\), but 3 came"),
        (["a,0", '"b,1'], {}, r"a\.csv:3: this row cannot be parsed"),
        (["a,0", "b,"], {}, r"a\.csv:3: a label needs to be a class name .*, but '' came"),
        (["a,0", "b,NaN"], {}, r"a\.csv:3: a label needs to be a class, but 'NaN' came"),
        (["a,0", ",1"], {}, r"a\.csv:3: text needs a text that is not empty, but '' came"),
        (["a,0", "b,-1"], {}, r"a\.csv:3: a label is needed, but none \(or -1, "),
        (
            ["a,0", "b,2"],
            dict(label_names=("0", "1")),
            r"a\.csv:3: a label needs to be one of 0, 1, but '2' came",
        ),
        (["a,good", "b,godo"], WORDS, r"a\.csv:3: .* but 'godo' came. Nearest: 'good'"),
        (["a,0", "b,1"], dict(label_names=("x", "x")), "two different classes"),
        ([f"{text},0" for text in TEXTS], {}, r"two classes, but .* has 0 alone \(first: .*:2\)"),
        ([f"{text},{i % 2 - 3}" for i, text in enumerate(TEXTS)], {}, "an id from 0, but -3"),
        ([f"{text},{i % 2}" for i, text in enumerate(TEXTS)], dict(limit=0), "1 or more, but 0"),
        (["a,0", "b,1"], WORDS, "needs examples in every split, but .* is empty"),
    ],
)
def test_a_wrong_csv_is_one_paragraph_with_file_and_line(rows, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(write_csv(tmp_path / "a.csv", rows), **options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b", "label": 1', r"a\.jsonl:2: .* not JSON: .* \(column \d+\)"),
        ("[1, 2]", r"a\.jsonl:2: .* but a list came"),
        ('{"txt": "b", "label": 1}', r"a\.jsonl:2: a row needs the field .*Nearest: 'txt'"),
        ('{"text": null, "label": 1}', r"a\.jsonl:2: text needs to be a text, but 'None'"),
        ('{"text": "b", "label": 0.5}', r"a\.jsonl:2: .* whole number, but 0.5 came"),
        ('{"text": "b", "label": null}', r"a\.jsonl:2: a label is needed, but none"),
        ('{"text": "\\ud800", "label": 1}', r"a\.jsonl:2: text .* holds half a character"),
    ],
)
def test_a_wrong_jsonl_line_is_one_paragraph_with_file_and_line(line, message, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n' + line)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "a.jsonl"))


def test_a_validation_label_that_train_lacks_is_an_error_with_its_place(tmp_path):
    for split in ("train", "validation", "test"):
        write_csv(tmp_path / f"{split}.csv", ["a,0", f"b,{2 if split == 'validation' else 1}"])
    with pytest.raises(ValueError, match=r"validation\.csv:3: .* but '2' came"):
        load(str(tmp_path))


def test_files_that_cannot_be_read_are_named(tmp_path):
    numbered(tmp_path / "reviews.csv")
    with pytest.raises(
        FileNotFoundError, match=r"reviwes\.csv' does not exist. Nearest: 'reviews.csv'"
    ):
        load(str(tmp_path / "reviwes.csv"))
    (tmp_path / "latin.csv").write_bytes("text,label\ncaf\u00e9,0\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv:2: byte 0xe9 is not UTF-8"):
        load(str(tmp_path / "latin.csv"))
    (tmp_path / "header.csv").write_bytes("text,caf\u00e9\na,0\n".encode("latin-1"))
    with pytest.raises(ValueError, match="the header needs to be UTF-8, but holds the byte 0xe9"):
        load(str(tmp_path / "header.csv"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="is empty: its first line needs to name the columns"):
        load(str(tmp_path / "empty.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=r"needs one file .*, but holds no data file"):
        load(str(tmp_path / "folder.csv"))
    with pytest.raises(ValueError, match="needs one of the suffixes"):
        load(numbered(tmp_path / "a.xlsx"))


def test_copies_of_editors_and_other_files_are_no_splits(tmp_path):
    for split in ("train", "validation", "test"):
        numbered(tmp_path / f"reviews_{split}.csv")
    whole = load(str(tmp_path))
    numbered(tmp_path / ".ipynb_checkpoints" / "train-checkpoint.csv")
    numbered(tmp_path / "._train.csv")
    numbered(tmp_path / "test_predictions.csv")
    again = load(str(tmp_path))
    assert again.splits.keys() == whole.splits.keys() and again.fingerprint == whole.fingerprint
    assert "Not read, as their names end with no split: test_predictions.csv." in again.note


@pytest.mark.parametrize("other", ["train.tsv", "old_train.csv", "more/train.csv"])
def test_two_files_of_one_split_are_not_joined(tmp_path, other):
    numbered(tmp_path / "train.csv")
    numbered(tmp_path / other)
    with pytest.raises(ValueError, match="one file for each split, .* but 2 are there for train"):
        load(str(tmp_path))


def test_numbered_parts_of_one_split_are_joined(tmp_path):
    for part in range(2):
        rows = [f"{text},{i % 2}" for i, text in enumerate(TEXTS)][50 * part : 50 * part + 50]
        write_csv(tmp_path / "data" / f"train-0000{part}-of-00002.csv", rows)
    assert len(labels_of(load(str(tmp_path)))) == 100


def test_a_fingerprint_is_of_what_was_read(tmp_path):
    rows = [f"{text},{['bad', 'good'][i % 2]}" for i, text in enumerate(TEXTS)]
    first = load(write_csv(tmp_path / "a.csv", rows)).fingerprint
    assert load(write_csv(tmp_path / "moved" / "b.csv", rows)).fingerprint == first
    changed = {
        "a label": [rows[0].replace("bad", "good"), *rows[1:]],
        "a letter": [rows[0].replace("text", "Text"), *rows[1:]],
        "a row less": rows[1:],
        "the order": rows[::-1],
        "the names of classes": [row.replace("good", "fine") for row in rows],
    }
    prints = {
        what: load(write_csv(tmp_path / "c.csv", other)).fingerprint
        for what, other in changed.items()
    }
    assert first not in prints.values() and len(set(prints.values())) == len(prints)
    other = load(str(tmp_path / "a.csv"), label_names=("good", "bad"))
    assert other.fingerprint != first
