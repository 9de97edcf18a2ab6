"""TensorFlow Datasets as a source: the catalogue under mock_data, a builder of our own, and what
bad names get; without TensorFlow.
"""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from lora_jax.config import DataConfig
from lora_jax.data import Dataset, catalogue, load, split_of
from lora_jax.tasks.reading import examples_of


def test_a_catalogue_name_loads_under_mock_data_without_tensorflow(
    tmp_path: Path,
) -> None:
    two = dict(text="sentence1", text_pair="sentence2")
    with tfds.testing.mock_data(num_examples=7):
        data = load("glue/sst2", columns=dict(text="sentence"), data_dir=tmp_path)
        pairs = load("glue/mrpc", "pair_classification", columns=two, data_dir=tmp_path)
    assert {split: len(part) for split, part in data.splits.items()} == {
        "train": 7,
        "validation": 7,
        "test": 7,
    }
    assert data.label_names == ("negative", "positive")
    assert {row.values["label"] for row in data["train"]} <= set(data.label_names)
    assert all(isinstance(row.values["text"], str) for row in data["train"])
    assert all(row.values["text_pair"] for row in pairs["test"]) and len(pairs["test"]) == 7
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gleu/sst2", "needs to be 'rotten_tomatoes', 'imdb', .*Nearest: 'glue'"),
        ("roten_tomatoes", "Nearest: 'rotten_tomatoes'"),
        ("huggingface:imdb", "is none of these"),
        ("glue/sst3", "Nearest: 'sst2'"),
    ],
)
def test_an_unknown_name_lists_near_ones(name, message, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(name, data_dir=tmp_path)


def test_a_wrong_catalogue_column_lists_near_ones(tmp_path: Path) -> None:
    message = r"sst2 .*needs the field 'sentense', but has .*Nearest: 'sentence'"
    with tfds.testing.mock_data(num_examples=2), pytest.raises(ValueError, match=message):
        load("glue/sst2", columns=dict(text="sentense"), data_dir=tmp_path)


def test_scores_are_no_classes(tmp_path: Path) -> None:
    columns = dict(text="sentence1", text_pair="sentence2")
    with (
        tfds.testing.mock_data(num_examples=2),
        pytest.raises(ValueError, match="a class name or a whole number"),
    ):
        load("glue/stsb", "pair_classification", columns=columns, data_dir=tmp_path)


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
        load("glue/sst2", columns=dict(text="sentence"), data_dir=tmp_path)


def tiny_builder(
    folder: Path, published: dict[str, list[tuple[str, int]]], archive: Path | None = None
) -> Any:
    """A TFDS builder of (text, label) rows; with `archive`, TFDS unpacks that zip file first."""

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


def read_tiny(folder: Path, monkeypatch: pytest.MonkeyPatch, **published: Any) -> Dataset:
    monkeypatch.setattr(catalogue, "_builder", lambda name, folder: tiny_builder(folder, published))
    return load("tiny", data_dir=folder)


def texts_of(data: Dataset, split: str) -> tuple[str, ...]:
    return tuple(row.values["text"] for row in data[split])


TEXTS = [f"text number {i}" for i in range(100)]
LABELLED = [(text, i % 2) for i, text in enumerate(TEXTS)]
HIDDEN = [("hidden", -1), ("too", -1)]


def test_a_test_split_without_labels_makes_validation_the_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_tiny(tmp_path, monkeypatch, train=LABELLED, validation=[("v", 1)], test=HIDDEN)
    assert texts_of(data, "test") == ("v",) and data["test"][0].values["label"] == "yes"
    assert set(texts_of(data, "validation")) == {
        text for text in TEXTS if split_of(text) == "validation"
    }
    assert set(texts_of(data, "train")) == {
        text for text in TEXTS if split_of(text) != "validation"
    }
    assert "has no labels and is not used. Validation serves as test." in data.note
    assert "Validation cut out of train by hash." in data.note


def test_a_missing_validation_split_is_carved_out_of_train_and_test_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_tiny(tmp_path, monkeypatch, train=LABELLED, test=[("t", 0)])
    assert texts_of(data, "test") == ("t",)
    assert len(data["train"]) + len(data["validation"]) == 100 and data["validation"]
    assert data.note == "Validation cut out of train by hash."


def test_published_splits_with_labels_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_tiny(tmp_path, monkeypatch, train=LABELLED, validation=[("v", 1)], test=[("t", 0)])
    assert [len(part) for part in data.splits.values()] == [100, 1, 1] and not data.note


def test_published_splits_are_held_out_by_their_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GLUE's papers have MNLI: both validation sets are what is chosen on and reported."""
    published = dict(
        train=LABELLED, validation_matched=[("m", 1)], validation_mismatched=[("u", 0)], test=HIDDEN
    )
    read_tiny(tmp_path, monkeypatch, **published)
    both = "validation_matched+validation_mismatched"
    config = DataConfig(name="tiny", validation_split=both, test_split=both)
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(
        catalogue, "_builder", lambda name, folder: tiny_builder(tmp_path, published)
    )
    data = examples_of(config)
    assert texts_of(data, "test") == texts_of(data, "validation") == ("m", "u")
    assert len(data["train"]) == 100 and "chosen on what is reported" in data.note
    assert texts_of(examples_of(DataConfig(name="tiny")), "test") == ("m",)
    with pytest.raises(ValueError, match="no split 'dev' to hold out. It has: validation_matched"):
        load("tiny", held_out={"test": "dev"}, data_dir=tmp_path)
    with pytest.raises(ValueError, match="no published splits: leave config.data.test_split at"):
        load([dict(text="a", label="b")], held_out={"test": "dev"})


def test_a_hidden_label_among_others_is_a_wrong_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = dict(train=[*LABELLED, ("x", -1)], validation=[("v", 1)], test=[("t", 0)])
    with pytest.raises(ValueError, match=r"tiny train\[\d+\]: a label is needed, but none"):
        read_tiny(tmp_path, monkeypatch, **published)


def test_a_data_set_without_train_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="needs a train split, but has 'test'"):
        read_tiny(tmp_path, monkeypatch, test=LABELLED)


def test_tfds_unpacks_an_archive_without_tensorflow(tmp_path: Path) -> None:
    archive = tmp_path / "rows.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(
            "inner/rows.json",
            json.dumps(dict(train=LABELLED, validation=[("v", 1)], test=[("t", 0)])),
        )
    builder = catalogue.prepare(
        lambda: tiny_builder(tmp_path / "tfds", {}, archive), "tiny", quietly=True
    )
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert sizes == {"train": 100, "validation": 1, "test": 1}
