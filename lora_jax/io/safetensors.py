"""Whole .safetensors files: all tensors read at once, or written in one step. `tensor_files.py`
reads them one by one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from lora_jax.core.json_files import save_json
from lora_jax.core.replacing import replacing
from lora_jax.io.tensor_files import SafetensorsFile


def read(path: Path | str) -> dict[str, np.ndarray]:
    """All tensors of a file, by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, truncated or no safetensors file, or holds a dtype that numpy has
            not.
    """
    return {name: np.array(tensor) for name, tensor in SafetensorsFile(path).items()}


def read_metadata(path: Path | str) -> dict[str, str]:
    """The text metadata of a file; empty if it has none.

    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    return dict(SafetensorsFile(path).metadata)


def write(
    path: Path | str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Replaces the file in one step: a reader sees the old file or the new one, never half. Equal
    content gives equal bytes.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is kept.
    """
    path = Path(path)
    try:
        with replacing(path) as new:
            # The format's writer takes an array's memory as it lies: a transposed view would be
            # stored untransposed.
            save_file(
                {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()},
                str(new),
                metadata=dict(metadata or {}),
            )
            with open(new, "r+b") as file:
                _sort_metadata(file)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path} could not be written: {error}. Free some space or choose another folder; what "
            "was there is kept."
        ) from error


def checksum(
    tensors: Mapping[str, np.ndarray],
    text: Mapping[str, str],
    passing: Callable[[str, np.ndarray], None] = lambda name, tensor: None,
) -> str:
    """The sha256 (hex) of tensors, their names, dtypes and shapes, and of a file's text. `passing`
    is given each tensor on its way, so that a file is read once for both.
    """
    digest = hashlib.sha256(json.dumps(sorted(text.items())).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name}:{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        passing(name, array)
    return digest.hexdigest()


def write_folder(folder: Path, shards: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Writes the tensors of a model folder: model.safetensors, or of several shards each a file and
    an index.

    Raises:
        OSError: as `write`.
    """
    if len(shards) == 1:
        write(folder / "model.safetensors", shards[0], {"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write(folder / file, shard, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    save_json(folder / "model.safetensors.index.json", index)


def _sort_metadata(file: BinaryIO) -> None:
    """Puts the metadata in the order of its keys: the writer's own order differs from one process
    to the next.
    """
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) <= size:
        file.seek(8)
        file.write(text.ljust(size))
