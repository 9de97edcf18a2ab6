"""Tensors of safetensors files by name, read one by one from the memory-mapped file; headers are
checked against its size by the format's own library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from lora_jax.core.host import MappedFile
from lora_jax.core.json_files import parse_json, read_json
from lora_jax.io.tensors import Tensors

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MOST_AXES = 32  # numpy's own limit, in its older versions
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

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFile(Tensors):
    """The tensors of one file. Reading one gives a view of the mapped file: nothing is read before
    it is used, and of what was given before, no page counts as this process's memory until it is
    used again.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it may not be read, or cannot be opened now.
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
        # The format's own reader compares the header with the file, and gives no views of it. What
        # it cannot open, it says not to be there.
        try:
            with self.path.open("rb"), safe_open(self.path, framework="numpy"):
                pass
        except OSError as error:
            raise OSError(
                f"{self.path} cannot be read: {error.strerror or error}. The file itself may be "
                "sound: see to its permissions and to the number of open files, and try again."
            ) from error
        except SafetensorError as error:
            raise ValueError(
                f"{self.path} needs to be a whole safetensors file, but {error}. It is cut off, "
                "changed or of another kind; fetch it again."
            ) from None
        self._file = MappedFile(self.path)
        start = 8 + int.from_bytes(self._file.bytes[:8].tobytes(), "little")
        header = parse_json(self._file.bytes[8:start].tobytes(), self.path)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._entries = {
            name: _entry(f"{name!r} in {self.path}", told, start) for name, told in header.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        raw = self._file.take(entry.start, entry.size)
        return raw.view(entry.dtype).reshape(entry.shape)


class ModelFolder(Tensors):
    """The tensors of a model folder: of model.safetensors, or of all shards that its index lists,
    as if they were one file.

    Raises:
        FileNotFoundError: neither is there, or a shard is missing.
        ValueError: a file is damaged, or the shards do not hold what the index says.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        if (folder / _SINGLE).is_file():
            self._entries = dict.fromkeys(file := SafetensorsFile(folder / _SINGLE), file)
            return

        if not (folder / _INDEX).is_file():
            there = (
                ", ".join(sorted(entry.name for entry in folder.iterdir())[:12])
                if folder.is_dir()
                else "no such folder"
            )
            # Of a repository pickles are not even fetched, so its folder holds no weights at all.
            is_model = (folder / "config.json").is_file() or any(folder.glob("*.bin"))
            raise FileNotFoundError(
                f"{folder} needs {_SINGLE} (or {_INDEX} with its shards), but holds {there or 'nothing'}. "
                + ("Pickled weights are not read, since loading them can run code: if the model comes "
                   "as pytorch_model.bin alone, convert it to safetensors with its own tools (transformers: "
                   "from_pretrained(NAME).save_pretrained(FOLDER)), and give that folder."
                   if is_model or any(folder.glob("*.pt")) else "Give the folder of a Hugging Face model.")
            )  # fmt: skip

        shard_of = _read_index(folder / _INDEX)
        self._entries = {}
        for shard in sorted(set(shard_of.values())):
            for name in (file := SafetensorsFile(folder / shard)):
                if shard_of.get(name) != shard:
                    raise ValueError(
                        f"{folder / shard} holds {name!r}, which {_INDEX} places in "
                        f"{shard_of.get(name)!r}. Fetch it again."
                    )
                self._entries[name] = file

        if missing := sorted(set(shard_of) - set(self._entries)):
            raise ValueError(
                f"The shards in {folder} lack {len(missing)} tensors that {_INDEX} lists, such as "
                f"{missing[0]!r}."
            )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._entries[name][name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._entries[name].shape(name)

    def size(self, name: str) -> int:
        """The bytes of a tensor in its file."""
        return self._entries[name].size(name)


def _entry(what: str, told: dict[str, Any], start: int) -> _Entry:
    if told["dtype"] not in _DTYPES:
        raise ValueError(
            f"{what} has dtype {told['dtype']}, which is not read; needed one of "
            f"{', '.join(_DTYPES)}."
        )
    if len(told["shape"]) > _MOST_AXES:
        raise ValueError(f"{what} has {len(told['shape'])} axes; at most {_MOST_AXES} are read.")
    return _Entry(_DTYPES[told["dtype"]], tuple(told["shape"]), start + told["data_offsets"][0])


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
