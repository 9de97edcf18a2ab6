"""Tensors by name in .safetensors files: read without copying, checked, written in one step."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def read(path: Path | str) -> dict[str, np.ndarray]:
    """All tensors of a file, by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, truncated or no safetensors file, or holds a dtype that numpy has not.
    """
    path = Path(path)
    with _opened(path) as file:
        return {name: _tensor(path, file, name) for name in file.keys()}  # noqa: SIM118 (the handle is no mapping)


def read_metadata(path: Path | str) -> dict[str, str]:
    """The text metadata of a file; empty if it has none.

    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    with _opened(Path(path)) as file:
        return dict(file.metadata() or {})


def read_folder(folder: Path | str) -> dict[str, np.ndarray]:
    """All tensors of a model folder: model.safetensors, or the shards that model.safetensors.index.json lists.

    Raises:
        FileNotFoundError: neither is there, or a shard is missing.
        ValueError: a file is damaged, or the shards do not hold what the index says.
    """
    folder = Path(folder)
    if (folder / _SINGLE).is_file():
        return read(folder / _SINGLE)
    if not (folder / _INDEX).is_file():
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) if folder.is_dir() else "no such folder"
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise FileNotFoundError(
            f"{folder} needs {_SINGLE} (or {_INDEX} with its shards), but holds {there or 'nothing'}. "
            + ("Pickled weights are not read, since loading them can run code: convert them to safetensors with their own tools." if pickled else
               "Give the folder of a Hugging Face model.")
        )  # fmt: skip
    try:
        shard_of = dict(json.loads((folder / _INDEX).read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / _INDEX} needs a JSON object with a weight_map, but cannot be read ({error}). Fetch the model again."
        ) from None
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(shard_of.values())):
        for name, tensor in read(folder / shard).items():
            if shard_of.get(name) != shard:
                raise ValueError(
                    f"{folder / shard} holds {name!r}, which {_INDEX} places in {shard_of.get(name)!r}. Fetch the model again."
                )
            tensors[name] = tensor
    if missing := sorted(set(shard_of) - set(tensors)):
        raise ValueError(
            f"The shards in {folder} lack {len(missing)} tensors that {_INDEX} lists, such as {missing[0]!r}. Fetch the model again."
        )
    return tensors


def write(path: Path | str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Replaces the file in one step: a reader sees the old file or the new one, never half. Equal content gives equal bytes.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is kept.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        # The format's writer takes an array's memory as it lies: a transposed view would be stored untransposed.
        save_file({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, str(new), metadata=dict(metadata or {}))
        with open(new, "r+b") as file:
            _sort_metadata(file)
            os.fsync(file.fileno())
        os.replace(new, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} could not be written: {error}. Free some space or choose another folder; what was there is kept.") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def _sort_metadata(file: BinaryIO) -> None:
    """Puts the metadata in the order of its keys: the writer's own order differs from one process to the next."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) <= size:
        file.seek(8)
        file.write(text.ljust(size))


def _opened(path: Path):
    if not path.is_file():
        near = sorted(entry.name for entry in path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
        raise FileNotFoundError(f"There is no file {path}. Safetensors files in its folder: {', '.join(near[:8]) or 'none'}.")
    try:
        return safe_open(str(path), framework="np")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} needs to be a whole safetensors file, but cannot be read ({path.stat().st_size:,} bytes: {error}). "
            "It is empty, cut off, or of another kind; fetch it again."
        ) from None


def _tensor(path: Path, file: safe_open, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (SafetensorError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path}: the tensor {name!r} cannot be read ({error}). Fetch the file again, or convert it to float32.") from None
