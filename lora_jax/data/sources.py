"""Data sets by name as streams of rows: files, folders, TensorFlow Datasets and the Hugging Face
hub.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .records import SPLITS, near_names
from .rows import SUFFIXES, Problems, Row, read_rows

_HUB = "hf:"
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": (
        "validation",
        "valid",
        "val",
        "dev",
        "devel",
        "development",
        "validation_matched",
    ),
    "test": ("test", "testing", "eval"),
}
Stream = Callable[[Problems], Iterator[Row]]


@dataclasses.dataclass(frozen=True)
class Source:
    """The streams of a data set under train, validation and test, or one under 'all' that is still
    to be split.

    `classes` are the class names of columns that the data set itself declares, in the order of
    their ids.
    """

    name: str
    streams: Mapping[str, Stream]
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def open_source(name: str, *, data_dir: Path | str | None = None) -> Source:
    """The streams of a data set; nothing is read yet, but what the network holds is fetched.

    `name` is the path of a .csv, .tsv, .jsonl, .json or .parquet file or of a folder with files
    named after splits; 'hf:org/name' or 'hf:org/name/config' for files of a Hugging Face dataset;
    or a TensorFlow Datasets name such as 'glue/sst2'.

    Raises:
        FileNotFoundError: it is not there, or cannot be fetched. ValueError: a folder or data set
            without usable splits.
    """
    path = Path(name).expanduser()
    if name.startswith(_HUB):
        return _folder(_fetch(name), name)
    if path.is_dir():
        return _folder(path, name)
    if name.endswith(SUFFIXES) or name.startswith((".", "/", "~")):
        return Source(name, {"all": lambda problems: read_rows(path, problems)})
    return _catalogue(name, data_dir)


def _folder(folder: Path, name: str) -> Source:
    """Files by the split that their names (or their folders') say; a lone file is split later."""
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    parts: dict[str, list[Path]] = {}
    for path in files:
        if split := _split_in(path.relative_to(folder)):
            parts.setdefault(split, []).append(path)
    if "train" in parts:
        kept = {split: parts[split] for split in SPLITS if split in parts}
        return Source(name, {split: _chain(paths) for split, paths in kept.items()})
    if len(files) == 1:
        return Source(name, {"all": _chain(files)})
    there = ", ".join(str(path.relative_to(folder)) for path in files[:8]) or "no data file"
    raise ValueError(
        f"Data folder {name!r} needs one file ({', '.join(SUFFIXES)}), or files named after their "
        "splits with a train among them, but holds "
        f"{there}. Rename them, or name a single file."
    )


def _split_in(path: Path) -> str | None:
    """'validation' of 'data/validation-00000-of-00001.parquet'; the file's name counts before its
    folders'.
    """
    for part in (path.stem, *reversed(path.parent.parts)):
        words = re.split(r"[-._ ]", part.lower())
        for split, names in _SPLIT_WORDS.items():
            if any(word in names for word in words):
                return split
    return None


def _chain(paths: list[Path]) -> Stream:
    return lambda problems: (row for path in paths for row in read_rows(path, problems))


def _fetch(name: str) -> Path:
    import huggingface_hub

    repository, config = _hub_name(name)
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    if config:
        patterns = [f"{config}/*{suffix}" for suffix in SUFFIXES] + [
            f"*/{config}/*{suffix}" for suffix in SUFFIXES
        ]
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository, repo_type="dataset", allow_patterns=patterns
            )
        )
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise FileNotFoundError(
            f"The Hugging Face dataset {repository!r} is not in the local cache and could not be "
            "fetched. Check the name and the network, or "
            f"copy its files here and give their folder. The hub says: {said}"
        ) from error
    if config:
        found = [
            path for path in (folder / config, *sorted(folder.glob(f"*/{config}"))) if path.is_dir()
        ]
        if not found:
            there = sorted(
                {path.parent.name for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
            )
            raise FileNotFoundError(
                f"The Hugging Face dataset {repository!r} has no folder {config!r}. "
                f"{near_names(config, there)}Folders: {', '.join(there)}."
            )
        return found[0]
    return folder


def _hub_name(name: str) -> tuple[str, str]:
    """('org/name', 'config') of 'hf:org/name/config'."""
    parts = name.removeprefix(_HUB).split("/")
    if not all(parts) or len(parts) > 3:
        raise ValueError(
            f"A Hugging Face dataset is named 'hf:org/name' or 'hf:org/name/config', got {name!r}."
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else ""


def _catalogue(name: str, data_dir: Path | str | None) -> Source:
    from .catalogue import catalogue_builder, prepare
    from .datasets import default_data_dir

    folder = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    builder = prepare(lambda: catalogue_builder(name, folder), name)
    published = list(builder.info.splits) or list(
        SPLITS
    )  # A builder under tfds.testing.mock_data lists none.
    chosen: dict[str, str] = {}
    for split, names in _SPLIT_WORDS.items():
        if found := next((word for word in names if word in published), None):
            chosen[split] = found
    if "train" not in chosen:
        raise ValueError(
            f"Data set {name!r} needs a train split, but has {', '.join(map(repr, published))}. "
            "Choose another one."
        )
    names_of = {
        column: feature.names
        for column, feature in dict(builder.info.features).items()
        if getattr(feature, "names", None)
    }

    def stream(split: str) -> Stream:
        def rows(problems: Problems) -> Iterator[Row]:
            del problems  # What TFDS has prepared is whole.
            source = builder.as_data_source(split=split)
            for number in range(len(source)):
                fields = {column: plain(value) for column, value in dict(source[number]).items()}
                for column, names in names_of.items():
                    fields[column] = _named(fields[column], names)
                yield Row(f"{name} {split}[{number}]", fields)

        return rows

    return Source(
        name,
        {split: stream(found) for split, found in chosen.items()},
        {column: tuple(n) for column, n in names_of.items()},
    )


def _named(value: Any, names: Sequence[str]) -> Any:
    """Class ids as their names, so that labels read the same from every kind of source; -1, which
    marks a hidden one, as None.
    """
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if value >= 0 else None


def plain(value: Any) -> Any:
    """Bytes as text, arrays as lists, numpy scalars as numbers; a list of records for a record of
    lists, as TFDS has sequences.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
