"""Tensors of safetensors files by name, read one by one from the memory-mapped file; headers are
checked against its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from lora_jax.core.host import MappedFile
from lora_jax.core.json_files import parse_json, read_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


@dataclass(frozen=True)
class _Entry:
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


class SafetensorsFile(Mapping[str, np.ndarray]):
    """The tensors of one file. Reading one gives a view of the mapped file: nothing is read before
    it is used, and of what was given before, no page counts as this process's memory until it is
    used again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header is damaged, or does not fit the file's size; or a dtype is unknown.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            beside = self.path.parent.glob("*.safetensors") if self.path.parent.is_dir() else ()
            near = ", ".join(sorted(entry.name for entry in beside)[:8])
            raise FileNotFoundError(
                f"There is no file {self.path}. Safetensors files in its folder: {near or 'none'}."
            )
        size = self.path.stat().st_size
        if size < 8:
            raise _damaged(
                self.path, f"it has {size} bytes, and its header alone needs more than 8"
            )
        self._file = MappedFile(self.path)
        length = int.from_bytes(self._file.bytes[:8].tobytes(), "little")
        if length > min(size - 8, _HEADER_LIMIT):
            raise _damaged(
                self.path, f"its header claims {length:,} bytes, and the file has {size:,}"
            )
        try:
            header = parse_json(self._file.bytes[8 : 8 + length].tobytes(), "its header")
        except ValueError as error:
            raise _damaged(self.path, str(error)) from None
        if not isinstance(header, dict):
            raise _damaged(self.path, "its header is no JSON object")
        told = header.pop("__metadata__", None) or {}
        if not isinstance(told, dict) or not all(isinstance(text, str) for text in told.values()):
            raise _damaged(self.path, "its __metadata__ is no table of texts")
        self.metadata: dict[str, str] = told
        self._entries = _entries(self.path, header, 8 + length, size)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        count = math.prod(entry.shape)
        raw = self._file.take(entry.start, count * entry.dtype.itemsize)
        return raw.view(entry.dtype).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._entries[name].shape


class ModelFolder(Mapping[str, np.ndarray]):
    """The tensors of a model folder: of model.safetensors, or of all shards that its index lists,
    as if they were one file.

    Raises:
        FileNotFoundError: neither is there, or a shard is missing.
        ValueError: a file is damaged, or the shards do not hold what the index says.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        if (folder / _SINGLE).is_file():
            self._file_of = dict.fromkeys(file := SafetensorsFile(folder / _SINGLE), file)
            return
        if not (folder / _INDEX).is_file():
            there = (
                ", ".join(sorted(entry.name for entry in folder.iterdir())[:12])
                if folder.is_dir()
                else "no such folder"
            )
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
            raise FileNotFoundError(
                f"{folder} needs {_SINGLE} (or {_INDEX} with its shards), but holds {there or 'nothing'}. "
                + ("Pickled weights are not read, since loading them can run code: convert them to safetensors with their own tools."
                   if pickled else "Give the folder of a Hugging Face model.")
            )  # fmt: skip
        shard_of = _read_index(folder / _INDEX)
        self._file_of = {}
        for shard in sorted(set(shard_of.values())):
            for name in (file := SafetensorsFile(folder / shard)):
                if shard_of.get(name) != shard:
                    raise ValueError(
                        f"{folder / shard} holds {name!r}, which {_INDEX} places in "
                        f"{shard_of.get(name)!r}. Fetch it again."
                    )
                self._file_of[name] = file
        if missing := sorted(set(shard_of) - set(self._file_of)):
            raise ValueError(
                f"The shards in {folder} lack {len(missing)} tensors that {_INDEX} lists, such as "
                f"{missing[0]!r}."
            )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file_of[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._file_of[name].shape(name)


def _entries(path: Path, header: dict[str, object], start: int, size: int) -> dict[str, _Entry]:
    entries, spans = {}, []
    for name, told in header.items():
        try:
            dtype, shape = _DTYPES[told["dtype"]], tuple(told["shape"])
            begin, end = told["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            raise _damaged(
                path, f"the entry of {name!r} is not understood: {str(told)[:120]}"
            ) from None
        if not whole or end > size - start or begin + math.prod(shape) * dtype.itemsize != end:
            raise _damaged(
                path,
                f"{name!r} of shape {shape} claims bytes {begin} to {end}, and {size - start:,} "
                "follow the header",
            )
        entries[name] = _Entry(dtype, shape, start + begin)
        spans.append((begin, end))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise _damaged(
                path, f"its tensors overlap or leave a hole at byte {min(begin, reached)}"
            )
        reached = end
    if reached != size - start:
        raise _damaged(path, f"{size - start - reached} bytes after the last tensor belong to none")
    return entries


def _read_index(path: Path) -> dict[str, str]:
    try:
        shard_of = read_json(path)["weight_map"]
        if not all(
            isinstance(shard, str) and Path(shard).name == shard for shard in shard_of.values()
        ):
            raise ValueError("a shard is no plain file name")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} needs a JSON object with a weight_map, but cannot be read ({error}). Fetch "
            "the model again."
        ) from None
    return shard_of


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} needs to be a whole safetensors file, but {what}. It is cut off, changed or of "
        "another kind; fetch it again."
    )
