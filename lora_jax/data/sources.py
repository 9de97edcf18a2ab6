"""Data sets by name as streams of records: files, folders, TensorFlow Datasets and the Hugging Face
hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax.core.cache import cache_dir
from lora_jax.core.extras import needs

from .files import SUFFIXES, read_file
from .records import (
    MOVIE_REVIEWS,
    SPLIT_WORDS,
    SPLITS,
    Record,
    Source,
    SourceCsv,
    Stream,
    near_names,
    short,
)

_HUB = "hf:"
# '-00000-of-00003-0a1b2c3d4e5f6a7b' of a file that is one of several, '_2', or '-v1.1'.
_NUMBER = re.compile(r"[-._]?v?\d+(\.\d+)*([-_]of[-_]\d+)?(-[0-9a-f]{8,})?$")
Rows = Sequence[Mapping[str, Any]]


def open_source(
    name: str | Rows | Mapping[str, Rows],
    *,
    data_dir: Path | str | None = None,
    source_csv: SourceCsv | None = None,
) -> Source:
    """The streams of a data set; nothing is read yet, but what the network holds is fetched.

    `name` is one of
    - the path of a .csv, .tsv, .jsonl, .json or .parquet file, or of a folder with files named after
      splits;
    - 'hf:org/name' or 'hf:org/name/config' for files of a Hugging Face dataset;
    - a TensorFlow Datasets name such as 'glue/sst2', prepared once as ArrayRecord in `data_dir`
      (default: $LORA_JAX_CACHE/tfds). TensorFlow is never imported;
    - 'rotten_tomatoes' or 'imdb', the reviews of the movie-reviews package. `source_csv` is its
      file, or a function that returns the path, called only if the data set is not prepared yet;
    - rows in memory: mappings of columns to values, or such rows by split.

    Raises:
        FileNotFoundError: it is not there, or cannot be fetched. ValueError: a folder or data set
            without usable splits.
    """
    if not isinstance(name, str):
        return _memory(name)
    path = Path(name).expanduser()
    if name.startswith(_HUB):
        return _folder(_fetch(name), name)
    if path.is_dir() and name not in MOVIE_REVIEWS:
        return _folder(path, name)
    if path.suffix.lower() in SUFFIXES or name.startswith((".", "/", "~")):
        return Source(name, {"all": lambda problems: read_file(path, problems)})

    from .catalogue import open_catalogue

    folder = cache_dir() / "tfds" if data_dir is None else Path(data_dir).expanduser()
    return open_catalogue(name, folder, source_csv)


def _memory(rows: Rows | Mapping[str, Rows]) -> Source:
    if isinstance(rows, Mapping) and not {"train"} <= set(rows) <= set(SPLITS):
        raise ValueError(
            f"Rows by split need the names {', '.join(SPLITS)}, train at least, but "
            f"{', '.join(map(repr, rows)) or 'none'} came. Rename them."
        )
    parts = rows if isinstance(rows, Mapping) else {"all": rows}

    def stream(split: str) -> Stream:
        return lambda problems: (
            Record(f"{split}[{number}]", row) for number, row in enumerate(parts[split])
        )

    return Source("rows", {split: stream(split) for split in parts})


def _folder(folder: Path, name: str) -> Source:
    """Files by the split that their names (or their folders') say; a lone file is split later."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        # Editors and notebooks keep copies in hidden folders and files.
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    parts: dict[str | None, list[Path]] = {}
    for path in files:
        parts.setdefault(_split_in(path.relative_to(folder)), []).append(path)

    def shown(paths: list[Path]) -> str:
        return ", ".join(str(path.relative_to(folder)) for path in paths[:8])

    if "train" in parts:
        kept = {split: parts[split] for split in SPLITS if split in parts}
        for split, paths in kept.items():
            if len({(path.parent, _NUMBER.sub("", path.stem), path.suffix) for path in paths}) > 1:
                raise ValueError(
                    f"Data folder {name!r} needs one file for each split, or numbered parts of "
                    f"one, but {len(paths)} are there for {split}: {shown(paths)}. Keep one, or "
                    "name a folder in it."
                )
        unread = parts.get(None, [])
        note = f"Not read, as their names end with no split: {shown(unread)}." if unread else ""
        return Source(name, {split: _chain(paths) for split, paths in kept.items()}, note=note)
    if len(files) == 1:
        return Source(name, {"all": _chain(files)})
    raise ValueError(
        f"Data folder {name!r} needs one file ({', '.join(SUFFIXES)}), or files named after their "
        f"splits with a train among them, but holds {shown(files) or 'no data file'}. Rename them, "
        "or name a single file."
    )


def _split_in(path: Path) -> str | None:
    """'validation' of 'data/validation-00000-of-00001.parquet' and of 'tweets_val.csv': how the
    file's name ends, or else the name of a folder above it.
    """
    stem = _NUMBER.sub("", path.stem.lower())
    for part in (stem, *(folder.lower() for folder in reversed(path.parent.parts))):
        for split, names in SPLIT_WORDS.items():
            ends = tuple(f"{mark}{name}" for name in names for mark in "-._ ")
            if part in names or (part == stem and part.endswith(ends)):
                return split
    return None


def _chain(paths: list[Path]) -> Stream:
    return lambda problems: (record for path in paths for record in read_file(path, problems))


def _fetch(name: str) -> Path:
    with needs("data"):
        import huggingface_hub

    repository, config = _hub_name(name)
    places = (f"{config}/", f"*/{config}/") if config else ("",)
    patterns = [f"{place}*{suffix}" for place in places for suffix in SUFFIXES]
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository, repo_type="dataset", allow_patterns=patterns
            )
        )
    except Exception as error:
        raise FileNotFoundError(
            f"The Hugging Face dataset {repository!r} is not in the local cache and could not be "
            "fetched. Check the name, the network and the room in its cache, or copy its files "
            f"here and give their folder. The hub says: {short(error)}"
        ) from error
    if not config:
        return folder

    for path in (folder / config, *sorted(folder.glob(f"*/{config}"))):
        if path.is_dir():
            return path
    there = sorted(
        {path.parent.name for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    )
    raise FileNotFoundError(
        f"The Hugging Face dataset {repository!r} has no folder {config!r}. "
        f"{near_names(config, there)}Folders: {', '.join(there)}."
    )


def _hub_name(name: str) -> tuple[str, str]:
    """('org/name', 'config') of 'hf:org/name/config'."""
    parts = name.removeprefix(_HUB).split("/")
    if not all(parts) or len(parts) > 3:
        raise ValueError(
            f"A Hugging Face dataset is named 'hf:org/name' or 'hf:org/name/config', got {name!r}."
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else ""
