"""Text records from TensorFlow Datasets, without TensorFlow: prepared as ArrayRecord, read by
random access.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .labels import Classes, declared_classes, observed_classes
from .records import TextRecords, near_names, require_examples, split_of
from .tensorflow_free import plain_files, silence

# Where the catalogue holds its text data sets besides tensorflow_datasets.datasets, which TFDS
# searches by itself.
_GROUPS = ("text", "question_answering")
_VALIDATION = ("validation", "validation_matched", "dev")


def load_catalogue(
    name: str,
    *,
    text: str,
    text_pair: str | None,
    label: str,
    data_dir: Path,
    label_names: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> dict[str, TextRecords]:
    """The splits of the TFDS data set `name` (such as 'glue/sst2'), prepared in `data_dir` at the
    first call.

    Raises:
        FileNotFoundError: the data set is not prepared and cannot be downloaded or written.
        ValueError: no such data set, configuration or column; labels that are not classes; no
            labelled splits.
    """
    builder = prepare(lambda: catalogue_builder(name, data_dir), name)
    return read_splits(
        builder,
        name,
        text=text,
        text_pair=text_pair,
        label=label,
        label_names=label_names,
        num_classes=num_classes,
    )


def catalogue_builder(name: str, data_dir: Path) -> Any:
    """The TFDS builder of `name`.

    Raises:
        ValueError: TFDS knows no such data set or configuration; near names are listed.
    """
    import tensorflow_datasets as tfds

    # TFDS imports these groups only when all its data sets are listed; asked by name, 'glue' would
    # not be found.
    for group in _GROUPS:
        importlib.import_module(f"tensorflow_datasets.{group}")
    family, _, config = name.partition("/")
    # A community name ('huggingface:...') goes through the network and other libraries even to be
    # looked up.
    if ":" in family or family not in (known := tfds.list_builders(with_community_datasets=False)):
        near = "" if ":" in family else near_names(family, [*known, "rotten_tomatoes", "imdb"])
        raise ValueError(
            f"data set {name!r} needs to be 'rotten_tomatoes', 'imdb', a TensorFlow Datasets name "
            "such as "
            "'glue/sst2', or the path of a .csv, .tsv or .jsonl file or of a folder of such files, "
            "but it "
            f"is none of these. {near}Correct data.name."
        )
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (ValueError, TypeError, AssertionError) as error:
        configs = list(tfds.builder_cls(family).builder_configs)
        raise ValueError(
            f"data set {name!r} needs one of the configurations and versions of {family!r}, but "
            "TFDS "
            f"cannot build it. {near_names(config, configs, limit=6)}Its configurations: "
            f"{', '.join(configs[:20]) or 'none'}. Correct data.name. TFDS says: "
            f"{_short(error)}"
        ) from error
    except OSError as error:
        raise FileNotFoundError(_folder_message(name, data_dir, error)) from error


def prepare(build: Callable[[], Any], name: str, *, quietly: bool = False) -> Any:
    """The builder that `build` makes, its data set prepared as ArrayRecord.

    A prepared data set is re-used. Otherwise TFDS writes into a temporary folder and renames it, so
    an interrupted preparation leaves nothing half written. `quietly` leaves out TFDS's messages and
    progress bars, which matter only for long downloads.

    Raises:
        FileNotFoundError: a download or the folder failed. ValueError: the source's content is
            wrong.
    """
    builder = build()
    if _is_prepared(builder):
        return builder
    try:
        with plain_files(), silence() if quietly else contextlib.nullcontext():
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        # Another run may have finished the same data set in the meantime: then the rename fails and
        # its files serve.
        if _is_prepared(builder):
            return build()
        # Our own builders' messages already say needed, came and do.
        if hasattr(builder, "SOURCE") and isinstance(error, (ValueError, FileNotFoundError)):
            raise
        raise FileNotFoundError(_folder_message(name, Path(builder.data_dir), error)) from error
    return builder


def _is_prepared(builder: Any) -> bool:
    # TFDS logs a warning when it is asked about a folder that is not there.
    return Path(builder.data_dir).is_dir() and builder.is_prepared()


def read_splits(
    builder: Any,
    name: str,
    *,
    text: str,
    text_pair: str | None,
    label: str,
    label_names: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> dict[str, TextRecords]:
    """The train, validation and test records of a prepared builder.

    A published test split without labels (-1, as in GLUE) is not used: the validation split then is
    the test split. A validation split that is missing, or was used up in this way, is carved out of
    train: the texts in hash bucket 8. `note` of the splits says so.

    Raises:
        ValueError: columns are missing, labels are not classes, or there is no train split or
            nothing to test on.
    """
    _require_features(builder, name, text=text, text_pair=text_pair, label=label)
    published = {}
    with _reading(builder, name):
        for split in _wanted_splits(builder):
            rows = builder.as_data_source(split=split)
            published[split] = rows.__getitems__(list(range(len(rows)))) if len(rows) else []
    if "train" not in published:
        raise ValueError(
            f"data set {name!r} needs a train split, but has "
            f"{', '.join(map(repr, builder.info.splits))}. "
            "Choose another data set or configuration."
        )
    labelled = {split: rows for split, rows in published.items() if not _unlabelled(rows, label)}
    classes = _classes(builder, name, label, labelled.get("train", []), label_names, num_classes)
    duplicates = int((builder.info.metadata or {}).get("duplicates", 0))

    def records(split: str, source: str, note: str) -> TextRecords:
        rows = labelled[source]
        places = [(f"{name} {source}[{i}]", _label_text(row[label])) for i, row in enumerate(rows)]
        return TextRecords(
            texts=tuple(_string(row[text]) for row in rows),
            pairs=None if text_pair is None else tuple(_string(row[text_pair]) for row in rows),
            labels=np.asarray(classes.ids(places), np.int32),
            label_names=classes.names,
            name=name,
            split=split,
            duplicates=duplicates,
            note=note,
        )

    sources, note = _assign(name, list(published), list(labelled))
    splits = {split: records(split, source, note) for split, source in sources.items()}
    if sources["validation"] == "train":
        splits |= _carve(splits["train"])
    return require_examples(splits, remedy="Choose another data set or configuration.")


def _wanted_splits(builder: Any) -> list[str]:
    """The published splits that can serve, each once."""
    splits = list(builder.info.splits)
    # A builder under tfds.testing.mock_data has no list of splits, and answers to any name.
    if not splits:
        return ["train", "validation", "test"]
    validation = [split for split in _VALIDATION if split in splits][:1]
    return [split for split in ("train", *validation, "test") if split in splits]


def _assign(name: str, published: list[str], labelled: list[str]) -> tuple[dict[str, str], str]:
    """Which published split serves as train, validation and test, and a sentence on it if that is
    not obvious.
    """
    validation = next(
        (split for split in published if split in _VALIDATION and split in labelled), None
    )
    if "train" not in labelled or (validation is None and "test" not in labelled):
        raise ValueError(
            f"data set {name!r} needs labels in train and in validation or test, but only "
            f"{', '.join(map(repr, labelled)) or 'no split'} of {', '.join(map(repr, published))} "
            "has "
            "them. Choose another data set or label column."
        )
    if validation is not None and "test" in labelled:
        return {"train": "train", "validation": validation, "test": "test"}, ""
    if validation is not None:
        came = "has no labels" if "test" in published else "does not exist"
        note = f"The published test split of {name} {came}: {validation} is the test split, validation is texts of train in hash bucket 8."
        return {"train": "train", "validation": "train", "test": validation}, note
    note = (
        f"{name} has no labelled validation split: validation is texts of train in hash bucket 8."
    )
    return {"train": "train", "validation": "train", "test": "test"}, note


def _carve(train: TextRecords) -> dict[str, TextRecords]:
    held_out = np.array([split_of(text) == "validation" for text in train.texts], bool)
    validation = train.take(np.flatnonzero(held_out))
    return {
        "train": train.take(np.flatnonzero(~held_out)),
        "validation": dataclasses.replace(validation, split="validation"),
    }


def _require_features(
    builder: Any, name: str, *, text: str, text_pair: str | None, label: str
) -> None:
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    missing = [
        column
        for column in (text, text_pair, label)
        if column is not None and column not in features
    ]
    if missing:
        columns = ", ".join(
            f"{column!r} ({type(feature).__name__})" for column, feature in features.items()
        )
        raise ValueError(
            f"data set {name!r} needs a column {missing[0]!r}, but has {columns}. "
            f"{near_names(missing[0], features)}Name the columns with data.text, data.text_pair "
            "and "
            "data.label."
        )
    for column in (text, text_pair):
        if column is not None and not isinstance(features[column], tfds.features.Text):
            raise ValueError(
                f"data set {name!r}: column {column!r} needs to be text, but is "
                f"{features[column]!r}. "
                "Name a text column with data.text or data.text_pair."
            )
    feature = features[label]
    integer = feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)
    if not integer and not isinstance(feature, tfds.features.Text):
        raise ValueError(
            f"data set {name!r}: column {label!r} needs to hold one class an example, but is "
            f"{feature!r}. "
            "Name a class column with data.label; regression and several labels an example are not "
            "supported."
        )


def _classes(
    builder: Any,
    name: str,
    label: str,
    train: Sequence[dict[str, Any]],
    label_names: Sequence[str] | None,
    num_classes: int | None,
) -> Classes:
    published = getattr(builder.info.features[label], "names", None)
    if published is None:
        return declared_classes(label_names, num_classes) or observed_classes(
            [(f"{name} train[{i}]", _label_text(row[label])) for i, row in enumerate(train)]
        )
    if num_classes is not None and num_classes != len(published):
        raise ValueError(
            f"data set {name!r} needs num_classes={len(published)} ({', '.join(published[:12])}), "
            "but "
            f"num_classes={num_classes} came. Correct data.num_classes, or leave it out."
        )
    return declared_classes(label_names or published, num_classes) or Classes(
        tuple(published), declared=True
    )


def _label_text(value: Any) -> object:
    """The label as `labels.Classes` reads it: an integer stays one, bytes become a string."""
    return _string(value) if isinstance(value, (bytes, str)) else int(value)


def _unlabelled(rows: Sequence[dict[str, Any]], label: str) -> bool:
    """True where every label is -1, TFDS's mark for a hidden one."""
    return bool(rows) and all(
        not isinstance(row[label], (bytes, str)) and int(row[label]) == -1 for row in rows
    )


def _string(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


@contextlib.contextmanager
def _reading(builder: Any, name: str) -> Iterator[None]:
    """Turns whatever TFDS or ArrayRecord says about damaged files into one paragraph."""
    try:
        yield
    except Exception as error:
        raise FileNotFoundError(
            f"data set {name!r} needs readable ArrayRecord files in {str(builder.data_dir)!r}, but "
            "they cannot be read. Delete that folder and start again to prepare it anew. TFDS "
            f"says: {_short(error)}"
        ) from error


def _folder_message(name: str, folder: Path, error: Exception) -> str:
    return (
        f"data set {name!r} is not prepared in {str(folder)!r} and could not be downloaded or "
        "written there. Check "
        "the network and the folder, prepare it elsewhere and copy the folder, or give a local CSV "
        "or JSONL file. "
        f"TFDS says: {_short(error)}"
    )


def _short(error: Exception) -> str:
    """The first 300 characters of an error, on one line."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return said if len(said) <= 300 else said[:297] + "..."
