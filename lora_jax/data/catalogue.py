"""Data sets of TensorFlow Datasets, without TensorFlow: prepared as ArrayRecord, read by random
access.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import importlib.resources
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from lora_jax.core.extras import needs

from .records import (
    MOVIE_REVIEWS,
    SPLIT_WORDS,
    SPLITS,
    Problems,
    Record,
    Source,
    Stream,
    near_names,
    short,
)

# Where the catalogue holds its text data sets besides tensorflow_datasets.datasets, which TFDS
# searches by itself.
_GROUPS = ("text", "question_answering")


def open_catalogue(name: str, data_dir: Path, source_csv: Any = None) -> Source:
    """The streams of the TFDS data set `name`, or of 'rotten_tomatoes' or 'imdb', prepared in
    `data_dir` at the first call.

    Raises:
        FileNotFoundError: it is neither prepared nor downloadable, or cannot be written.
        ValueError: no such data set or configuration, or one without a train split.
    """
    ours = name in MOVIE_REVIEWS
    build = functools.partial(_movie_reviews, source_csv=source_csv) if ours else _builder
    # TFDS's messages and bars matter for long downloads alone.
    return tfds_source(prepare(lambda: build(name, data_dir), name, quietly=ours), name)


def tfds_source(builder: Any, name: str) -> Source:
    """The streams of a prepared TFDS builder, class ids as their names."""
    # A builder under tfds.testing.mock_data lists no splits, and answers to any name.
    published = list(builder.info.splits) or list(SPLITS)
    chosen = {
        split: found
        for split, words in SPLIT_WORDS.items()
        if (found := next((word for word in words if word in published), None))
    }
    if "train" not in chosen:
        raise ValueError(
            f"Data set {name!r} needs a train split, but has {', '.join(map(repr, published))}. "
            "Choose another data set or configuration."
        )
    names_of = {
        column: tuple(feature.names)
        for column, feature in dict(builder.info.features).items()
        if getattr(feature, "names", None)
    }

    def stream(split: str) -> Stream:
        def records(problems: Problems) -> Iterator[Record]:
            del problems  # What TFDS has prepared is whole.
            with _reading(builder, name):
                rows = builder.as_data_source(split=split)
                count = len(rows)
            for number in range(count):
                with _reading(builder, name):
                    row = dict(rows[number])
                fields = {column: _plain(value) for column, value in row.items()}
                for column, names in names_of.items():
                    fields[column] = _named(fields[column], names)
                yield Record(f"{name} {split}[{number}]", fields)

        return records

    repeated = int((builder.info.metadata or {}).get("duplicates", 0))
    return Source(
        name,
        {split: stream(found) for split, found in chosen.items()},
        names_of,
        f"{repeated} rows with a repeated input left out." if repeated else "",
        {split: stream(split) for split in published},
    )


def _movie_reviews(name: str, data_dir: Path, source_csv: Any) -> Any:
    """Our builder of 'rotten_tomatoes' or 'imdb'.

    Raises:
        FileNotFoundError: `data_dir` cannot be used.
    """
    from .movie_reviews import Imdb, RottenTomatoes

    builder = RottenTomatoes if name == "rotten_tomatoes" else Imdb
    try:
        return builder(data_dir=data_dir, file_format="array_record", source_csv=source_csv)
    except OSError as error:
        raise FileNotFoundError(
            f"Data set {name!r} needs a folder to be prepared in, but {str(data_dir)!r} cannot be "
            f"used: {error.strerror or error}. Give another data_dir, or set LORA_JAX_CACHE."
        ) from error


def _builder(name: str, data_dir: Path) -> Any:
    """The TFDS builder of `name`.

    Raises:
        ValueError: TFDS knows no such data set or configuration; near names are listed.
    """
    with needs("data"):
        import tensorflow_datasets as tfds

    # TFDS imports these groups only when all its data sets are listed; asked by name, 'glue' would
    # not be found.
    for group in _GROUPS:
        importlib.import_module(f"tensorflow_datasets.{group}")
    family, _, config = name.partition("/")
    # A community name ('huggingface:...') goes through the network and other libraries even to be
    # looked up.
    if ":" in family or family not in (known := tfds.list_builders(with_community_datasets=False)):
        near = "" if ":" in family else near_names(family, [*known, *MOVIE_REVIEWS])
        raise ValueError(
            f"Data set {name!r} needs to be 'rotten_tomatoes', 'imdb', a TensorFlow Datasets name "
            "such as 'glue/sst2', a Hugging Face dataset 'hf:org/name', or the path of a .csv, "
            ".tsv, .jsonl, .json or .parquet file or of a folder of such files, but it is none of "
            f"these. {near}Correct data.name."
        )
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (ValueError, TypeError, AssertionError) as error:
        configs = list(tfds.builder_cls(family).builder_configs)
        raise ValueError(
            f"Data set {name!r} needs one of the configurations and versions of {family!r}, but "
            f"TFDS cannot build it. {near_names(config, configs, limit=6)}Its configurations: "
            f"{', '.join(configs[:20]) or 'none'}. Correct data.name. TFDS says: {short(error)}"
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


@contextlib.contextmanager
def _reading(builder: Any, name: str) -> Iterator[None]:
    """Turns whatever TFDS or ArrayRecord says about damaged files into one paragraph."""
    try:
        yield
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # Nothing is wrong with the files.
        raise FileNotFoundError(
            f"Data set {name!r} needs readable ArrayRecord files in {str(builder.data_dir)!r}, but "
            "they cannot be read. Delete that folder and start again to prepare it anew. TFDS "
            f"says: {short(error)}"
        ) from error


def _folder_message(name: str, folder: Path, error: Exception) -> str:
    return (
        f"Data set {name!r} is not prepared in {str(folder)!r} and could not be downloaded or "
        "written there. Check the network and the folder, prepare it elsewhere and copy the "
        f"folder, or give a local CSV or JSONL file. TFDS says: {short(error)}"
    )


def _named(value: Any, names: Sequence[str]) -> Any:
    """Class ids as their names, so that labels read the same from every kind of source; -1, which
    marks a hidden one, as None.
    """
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if value >= 0 else None


def _plain(value: Any) -> Any:
    """Bytes as text, arrays as lists, numpy scalars as numbers; a list of records for a record of
    lists, as TFDS has sequences.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def plain_files() -> Iterator[None]:
    """Lets TFDS unpack archives and find its own resources with the standard library while it
    prepares a data set.

    TFDS 4.9 reads and writes archive members through `tf.io.gfile`, and names the package
    importlib_resources, which it does not require on Python >= 3.9. Both have an equal in the
    standard library for local files. Where TensorFlow is installed it is left in place.
    """
    with needs("data"):
        from tensorflow_datasets.core import dataset_builder
        from tensorflow_datasets.core.download import extractor

    gfile = SimpleNamespace(GFile=open)
    stand_ins: list[tuple[ModuleType, str, object]] = []
    if importlib.util.find_spec("tensorflow") is None:
        tensorflow = SimpleNamespace(
            io=SimpleNamespace(gfile=gfile), compat=SimpleNamespace(as_text=os.fsdecode)
        )
        stand_ins.append((extractor, "tf", tensorflow))
    if importlib.util.find_spec("importlib_resources") is None:
        stand_ins.append((dataset_builder, "importlib_resources", importlib.resources))
    before = [(module, name, getattr(module, name)) for module, name, _ in stand_ins]
    for module, name, stand_in in stand_ins:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name, original in before:
            setattr(module, name, original)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps TFDS from printing messages and progress bars, and leaves its progress setting as it
    was.
    """
    with needs("data"):
        from tensorflow_datasets.core.utils import tqdm_utils

    active = tqdm_utils._active  # TFDS has a setter for it, but no getter.
    tqdm_utils.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm_utils.display_progress_bar(active)
