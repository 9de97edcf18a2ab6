"""Data sets by name: the TFDS catalogue under mock_data, CSV, TSV and JSONL files, and what bad
input gets.
"""

import json
import logging
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lora_jax.data import TextRecords, load, split_of, subset
from lora_jax.data.catalogue import prepare, read_splits

TEXTS = [f"text number {i}" for i in range(100)]


def write_csv(path: Path, rows: list[str], header: str = "text,label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def numbered(path: Path) -> Path:
    return write_csv(path, [f"{text},{i % 3}" for i, text in enumerate(TEXTS)])


# --- files ---------------------------------------------------------------------------------------------------------


def test_one_csv_is_split_by_text_hash_after_removing_repeated_texts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{text},{i % 3}" for i, text in enumerate(TEXTS)]
    with caplog.at_level(logging.INFO):
        splits = load(str(write_csv(tmp_path / "a.csv", [*rows, rows[5], "text number 7,0"])))
    for split, part in splits.items():
        assert part.texts == tuple(text for text in TEXTS if split_of(text) == split)
        assert part.labels.dtype == np.int32
        assert part.labels.tolist() == [TEXTS.index(text) % 3 for text in part.texts]
        assert part.duplicates == 2
    assert "2 rows with a repeated text left out" in caplog.text


def test_csv_tsv_and_jsonl_of_the_same_rows_give_the_same_records(tmp_path: Path) -> None:
    rows = [(f'a, "quoted" text {i}', f"pair {i}", ["no", "yes"][i % 2]) for i in range(80)]
    quoted = [[field.replace('"', '""') for field in row] for row in rows]
    write_csv(
        tmp_path / "a.csv",
        [",".join(f'"{field}"' for field in row) for row in quoted],
        "first,second,answer",
    )
    tabbed = ["\t".join(f'"{field}"' for field in row) for row in quoted]
    write_csv(tmp_path / "a.tsv", tabbed, "\ufefffirst\tsecond\tanswer")
    lines = [json.dumps(dict(zip(("first", "second", "answer"), row), extra=1)) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    columns = dict(text="first", text_pair="second", label="answer")
    loaded = [load(str(tmp_path / f"a.{suffix}"), **columns) for suffix in ("csv", "tsv", "jsonl")]
    for split, part in loaded[0].items():
        assert (
            part.label_names == ("no", "yes")
            and part.pairs is not None
            and len(part.pairs) == len(part)
        )
        for other in loaded[1:]:
            assert (other[split].texts, other[split].pairs) == (part.texts, part.pairs)
            np.testing.assert_array_equal(other[split].labels, part.labels)


def test_a_folder_is_taken_as_it_is_and_shared_texts_are_noted(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ["a,0", "b,1", "b,1"])
    write_csv(tmp_path / "validation.csv", ["c,1"])
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "d", "label": 0}')
    splits = load(str(tmp_path))
    assert [splits[split].texts for split in ("train", "validation", "test")] == [
        ("a", "b", "b"),
        ("c",),
        ("a", "d"),
    ]
    assert (
        splits["test"].note == "1 of 2 test texts are in the train split too."
        and not splits["validation"].note
    )


def test_labels_are_sorted_as_numbers_when_all_are_numbers(tmp_path: Path) -> None:
    splits = load(
        str(write_csv(tmp_path / "a.csv", [f"{text},{i % 11 + 1}" for i, text in enumerate(TEXTS)]))
    )
    assert splits["train"].label_names == tuple(str(i) for i in range(1, 12))


def test_declared_names_may_be_written_as_names_or_as_ids(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "a.csv", [f"{text},{['bad', '1'][i % 2]}" for i, text in enumerate(TEXTS)]
    )
    part = load(str(path), label_names=("bad", "good"))["train"]
    assert part.labels.tolist() == [TEXTS.index(text) % 2 for text in part.texts]


def test_texts_longer_than_the_csv_modules_limit_are_read(tmp_path: Path) -> None:
    rows = [f"{text} {'word ' * 30_000},{i % 2}" for i, text in enumerate(TEXTS[:40])]
    assert sum(map(len, load(str(write_csv(tmp_path / "a.csv", rows))).values())) == 40


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            ["a,0"],
            dict(text="txet"),
            r"needs the columns 'txet', 'label', but 'txet' is not among .* Nearest: 'text'",
        ),
        (["a,0", "b,1,2"], {}, r"a\.csv:3: a row needs 2 fields \(text, label\), but 3 came"),
        (["a,0", '"b,1'], {}, r"a\.csv:3: this row cannot be parsed"),
        (
            ["a,0", "b,"],
            {},
            r"a\.csv:3: a label needs to be an integer or a class name, but '' came",
        ),
        (["a,0", ",1"], {}, r"a\.csv:3: column 'text' needs a text that is not empty, but '' came"),
        (["a,0", "b,-1"], {}, r"a\.csv:3: .* but -1 came"),
        (
            ["a,0", "b,2"],
            dict(num_classes=2),
            r"a\.csv:3: a label needs .* the 2 classes \('0', '1'\), but '2' came",
        ),
        (
            ["a,good", "b,godo"],
            dict(label_names=("bad", "good")),
            r"a\.csv:3: .* but 'godo' came. Nearest: 'good'",
        ),
        (["a,0", "b,1"], dict(num_classes=3, label_names=("x", "y")), "as many as num_classes"),
        (["a,0", "b,0"], {}, "needs at least two classes"),
        (["a,0", "b,1"], {}, "needs examples in every split, but .* is empty"),
    ],
)
def test_a_wrong_csv_is_one_paragraph_with_file_and_line(
    rows, options, message, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load(str(write_csv(tmp_path / "a.csv", rows)), **options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b", "label": 1', r"a\.jsonl:2: .* does not parse: .* \(column \d+\)"),
        ("[1, 2]", r"a\.jsonl:2: .* but a list came"),
        ('{"txt": "b", "label": 1}', r"a\.jsonl:2 needs the columns .*Nearest: 'txt'"),
        (
            '{"text": null, "label": 1}',
            r"a\.jsonl:2: column 'text' needs a text that is not empty, but None came",
        ),
        (
            '{"text": "b", "label": 0.5}',
            r"a\.jsonl:2: a label needs to be an integer or a class name, but 0.5 came",
        ),
    ],
)
def test_a_wrong_jsonl_line_is_one_paragraph_with_file_and_line(
    line: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n' + line)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "a.jsonl"))


def test_a_validation_label_that_train_lacks_is_an_error_with_its_place(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_csv(tmp_path / f"{split}.csv", ["a,0", f"b,{2 if split == 'validation' else 1}"])
    with pytest.raises(ValueError, match=r"validation\.csv:3: .* but '2' came"):
        load(str(tmp_path))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    numbered(tmp_path / "reviews.csv")
    with pytest.raises(
        FileNotFoundError, match=r"reviwes\.csv' does not exist. Nearest: 'reviews.csv'"
    ):
        load(str(tmp_path / "reviwes.csv"))
    (tmp_path / "latin.csv").write_bytes("text,label\ncaf\u00e9,0\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv' needs to be UTF-8, but byte 0xe9"):
        load(str(tmp_path / "latin.csv"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="none \\(the file is empty\\)"):
        load(str(tmp_path / "empty.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"exactly one file train\.csv, .* it holds nothing"
    ):
        load(str(tmp_path / "folder.csv"))
    numbered(tmp_path / "both" / "train.csv")
    numbered(tmp_path / "both" / "train.tsv")
    with pytest.raises(FileNotFoundError, match="2 are there: train.csv, train.tsv"):
        load(str(tmp_path / "both"))
    with pytest.raises(ValueError, match="needs one of the suffixes"):
        load(str(numbered(tmp_path / "a.parquet")))


# --- the TFDS catalogue --------------------------------------------------------------------------------------------


@pytest.fixture
def mocking(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tfds.testing, whose mocked sources can be read in bulk.

    In TFDS 4.9.10 the mock of `__getitems__` expects a `self` that unittest.mock does not pass to
    it.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.testing import mocking

    monkeypatch.setattr(
        mocking, "_getitems", lambda record_keys, generator: [generator[key] for key in record_keys]
    )
    return tfds.testing


def test_a_catalogue_name_loads_under_mock_data_without_tensorflow(
    mocking: ModuleType, tmp_path: Path
) -> None:
    with mocking.mock_data(num_examples=7):
        splits = load("glue/sst2", text="sentence", data_dir=tmp_path)
        pairs = load("glue/mrpc", text="sentence1", text_pair="sentence2", data_dir=tmp_path)
    assert {split: len(part) for split, part in splits.items()} == {
        "train": 7,
        "validation": 7,
        "test": 7,
    }
    assert splits["train"].label_names == ("negative", "positive") and set(
        splits["train"].labels
    ) <= {0, 1}
    assert all(isinstance(text, str) for text in splits["train"].texts)
    assert pairs["test"].pairs is not None and len(pairs["test"].pairs) == 7
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gleu/sst2", {}, "needs to be 'rotten_tomatoes', 'imdb', .*Nearest: 'glue'"),
        ("roten_tomatoes", {}, "Nearest: 'rotten_tomatoes'"),
        ("huggingface:imdb", {}, "is none of these"),
        ("glue/sst3", {}, "Nearest: 'sst2'"),
    ],
)
def test_an_unknown_name_lists_near_ones(name, options, message, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(name, data_dir=tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(text="sentense"), r"needs a column 'sentense', but has .*Nearest: 'sentence'"),
        (dict(text="idx"), "column 'idx' needs to be text"),
        (dict(text="sentence", num_classes=3), "needs num_classes=2"),
    ],
)
def test_wrong_catalogue_columns_are_one_paragraph(
    options, message, mocking: ModuleType, tmp_path: Path
) -> None:
    with mocking.mock_data(num_examples=2), pytest.raises(ValueError, match=message):
        load("glue/sst2", data_dir=tmp_path, **options)


def test_regression_labels_are_refused(mocking: ModuleType, tmp_path: Path) -> None:
    with mocking.mock_data(num_examples=2), pytest.raises(ValueError, match="regression"):
        load("glue/stsb", text="sentence1", text_pair="sentence2", data_dir=tmp_path)


def test_a_failed_download_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorflow_datasets.core.download import download_manager

    def offline(self: Any, urls: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(download_manager.DownloadManager, "download_and_extract", offline)
    with pytest.raises(
        FileNotFoundError,
        match="'glue/sst2' is not prepared in .* ConnectionError: no route to host",
    ):
        load("glue/sst2", text="sentence", data_dir=tmp_path)


def tiny_builder(
    folder: Path, published: dict[str, list[tuple[str, int]]], archive: Path | None = None
) -> Any:
    """A TFDS builder of (text, label) rows; with `archive`, TFDS unpacks that zip file first."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Rows given in a test."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["no", "yes"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            if archive is None:
                return {split: self._generate_examples(rows) for split, rows in published.items()}
            unpacked = Path(dl_manager.extract(archive)) / "inner" / "rows.json"
            return {
                split: self._generate_examples(rows)
                for split, rows in json.loads(unpacked.read_text()).items()
            }

        def _generate_examples(self, rows: Any) -> Any:
            for i, (text, label) in enumerate(rows):
                yield i, {"text": text, "label": label}

    return Tiny(data_dir=folder, file_format="array_record")


def read_tiny(folder: Path, **published: list[tuple[str, int]]) -> dict[str, TextRecords]:
    builder = prepare(lambda: tiny_builder(folder, published), "tiny", quietly=True)
    return read_splits(builder, "tiny", text="text", text_pair=None, label="label")


LABELLED = [(text, i % 2) for i, text in enumerate(TEXTS)]


def test_a_test_split_without_labels_makes_validation_the_test_split(tmp_path: Path) -> None:
    splits = read_tiny(
        tmp_path, train=LABELLED, validation=[("v", 1)], test=[("hidden", -1), ("too", -1)]
    )
    assert splits["test"].texts == ("v",) and splits["test"].labels.tolist() == [1]
    assert set(splits["validation"].texts) == {
        text for text in TEXTS if split_of(text) == "validation"
    }
    assert set(splits["train"].texts) == {text for text in TEXTS if split_of(text) != "validation"}
    assert "has no labels: validation is the test split" in splits["test"].note
    assert splits["validation"].split == "validation"


def test_a_missing_validation_split_is_carved_out_of_train_and_test_stays(tmp_path: Path) -> None:
    splits = read_tiny(tmp_path, train=LABELLED, test=[("t", 0)])
    assert splits["test"].texts == ("t",)
    assert len(splits["train"]) + len(splits["validation"]) == 100 and len(splits["validation"]) > 0
    assert "no labelled validation split" in splits["validation"].note


def test_published_splits_with_labels_are_taken_as_they_are(tmp_path: Path) -> None:
    splits = read_tiny(tmp_path, train=LABELLED, validation=[("v", 1)], test=[("t", 0)])
    assert [len(part) for part in splits.values()] == [100, 1, 1] and not splits["train"].note


def test_a_data_set_without_train_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a train split, but has 'test'"):
        read_tiny(tmp_path, test=LABELLED)


def test_tfds_unpacks_an_archive_without_tensorflow(tmp_path: Path) -> None:
    archive = tmp_path / "rows.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(
            "inner/rows.json",
            json.dumps(dict(train=LABELLED, validation=[("v", 1)], test=[("t", 0)])),
        )
    builder = prepare(lambda: tiny_builder(tmp_path / "tfds", {}, archive), "tiny", quietly=True)
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert sizes == {"train": 100, "validation": 1, "test": 1}


# --- caps ----------------------------------------------------------------------------------------------------------


def test_a_subset_is_nested_ordered_and_fixed_by_its_seed(tmp_path: Path) -> None:
    train = load(str(numbered(tmp_path / "a.csv")))["train"]
    ten, twenty = subset(train, 10), subset(train, 20)
    assert len(ten) == 10 and set(ten.texts) < set(twenty.texts) < set(train.texts)
    assert list(twenty.texts) == [text for text in train.texts if text in set(twenty.texts)]
    assert subset(train, 10).texts == ten.texts != subset(train, 10, seed=1).texts
    assert subset(train, None) is train and subset(train, 10_000) is train
    with pytest.raises(ValueError, match="at least 1 example, but 0"):
        subset(train, 0)
