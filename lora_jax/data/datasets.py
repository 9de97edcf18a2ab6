"""Labelled texts by name: one function for our TFDS builders, the TFDS catalogue, and CSV, TSV and
JSONL files.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .files import SUFFIXES, load_files
from .records import SPLITS, TextRecords, subset

__all__ = ["SPLITS", "TextRecords", "default_data_dir", "load", "subset"]

MOVIE_REVIEWS = ("rotten_tomatoes", "imdb")

_log = logging.getLogger(__name__)


def load(
    name: str,
    *,
    text: str = "text",
    text_pair: str | None = None,
    label: str = "label",
    label_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    data_dir: Path | str | None = None,
    source_csv: Path | str | Callable[[], Path | str] | None = None,
) -> dict[str, TextRecords]:
    """The records of the data set `name`, under the keys train, validation and test.

    `name` is one of
    - 'rotten_tomatoes' or 'imdb': the reviews of the movie-reviews CSV, each text once, split by
      `records.split_of`; `source_csv` is that file or a function that returns its path, called only
      if the data set is not prepared yet;
    - a TensorFlow Datasets name such as 'glue/sst2', downloaded at the first call. Where the
      published test split has no labels, the validation split is the test split and a tenth of
      train the validation split (see `note`);
    - the path of a .csv, .tsv or .jsonl file, split by text hash after removing repeated texts, or
      of a folder with a file for each split, taken as it is.

    `text`, `text_pair` and `label` name the columns. Labels in files are class names or integers;
    without `label_names` or `num_classes` the classes are the sorted different labels. TFDS data
    sets are prepared once as ArrayRecord in `data_dir` (default: `default_data_dir()`) and re-used.
    TensorFlow is never imported.

    Raises:
        FileNotFoundError: a file is missing, or a data set is neither prepared nor downloadable.
        OSError: a file cannot be read.
        ValueError: unknown name, missing columns, wrong encoding, row or label (with file and
            line), or an empty split.
    """
    columns = dict(text=text, text_pair=text_pair, label=label)
    classes = dict(label_names=label_names, num_classes=num_classes)
    folder = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    if name in MOVIE_REVIEWS:
        splits = _load_movie_reviews(name, folder, source_csv, columns | classes)
    elif _is_path(name):
        splits = load_files(Path(name).expanduser(), **columns, **classes)
    else:
        from .catalogue import load_catalogue

        splits = load_catalogue(name, data_dir=folder, **columns, **classes)
    _report(splits)
    return splits


def default_data_dir() -> Path:
    """The folder of prepared TFDS data sets: $LORA_JAX_CACHE/tfds, or ~/.cache/lora_jax/tfds."""
    return (
        Path(os.environ.get("LORA_JAX_CACHE") or Path.home() / ".cache" / "lora_jax").expanduser()
        / "tfds"
    )


def _load_movie_reviews(
    name: str, folder: Path, source_csv: Path | str | Callable[[], Path | str] | None, options: dict
) -> dict[str, TextRecords]:
    from .catalogue import prepare, read_splits
    from .movie_reviews import Imdb, RottenTomatoes

    builder_class = RottenTomatoes if name == "rotten_tomatoes" else Imdb

    def build() -> RottenTomatoes | Imdb:
        try:
            return builder_class(data_dir=folder, file_format="array_record", source_csv=source_csv)
        except OSError as error:
            raise FileNotFoundError(
                f"data set {name!r} needs a folder to be prepared in, but {str(folder)!r} cannot "
                f"be used: {error.strerror or error}. Give another data_dir, or set "
                "LORA_JAX_CACHE."
            ) from error

    return read_splits(prepare(build, name, quietly=True), name, **options)


def _is_path(name: str) -> bool:
    """True for what can only be a path: a known suffix, a folder that is there, or a leading '.',
    '/' or '~'.
    """
    return name.endswith(SUFFIXES) or name.startswith((".", "/", "~")) or Path(name).is_dir()


def _report(splits: dict[str, TextRecords]) -> None:
    """Logs sizes, removed duplicates and notes."""
    train = splits["train"]
    sizes = ", ".join(f"{split} {len(records)}" for split, records in splits.items())
    _log.info(
        "%s: %s examples; %d rows with a repeated text left out",
        train.name,
        sizes,
        train.duplicates,
    )
    for note in dict.fromkeys(records.note for records in splits.values() if records.note):
        _log.warning("%s", note)
