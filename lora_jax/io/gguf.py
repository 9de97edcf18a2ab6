"""GGUF files (llama.cpp): metadata and tensors, memory-mapped; every size in the header is checked
against the file's.

Layout (ggml/docs/gguf.md): magic, version, counts, metadata, tensor headers, padding, tensor data;
little-endian. The package gguf reads such files, too; here it is not needed for reading, and a file
that lies about its sizes is an error.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.core.host import MappedFile, aligned, closed
from lora_jax.io.gguf_blocks import FORMATS, OTHERS, BlockFormat
from lora_jax.io.tensors import Tensors

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # as `struct` calls them
_ROWS = 8 << 20  # weights that are dequantised at a time, so that temporaries stay small
_MAX_DIMS = 4
_MAX_DEPTH = 4  # arrays in arrays; files in use have none


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    format: BlockFormat
    start: int
    size: int


class Header(Tensors):
    """What a GGUF file says before its data, in `metadata` and in the tensors' names and shapes: of
    a file, or of one that is about to be written.
    """

    path: Path
    metadata: Mapping[str, Any]


class GgufFile(Header):
    """The tensors of a GGUF file by name, rows first (out, in); reading one dequantises it (F16 and
    BF16 stay what they are).

    `metadata` holds the keys of the file, such as 'general.architecture'.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no GGUF file, is cut off, claims more than its size allows, or has a
            tensor of an unsupported type.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no file {self.path}.")
        if self.path.stat().st_size < 24:
            raise ValueError(
                f"{self.path} needs to be a GGUF file, but has only {self.path.stat().st_size} "
                "bytes. Fetch it again."
            )

        self._file = MappedFile(self.path)
        reader = _Reader(self.path, self._file.bytes)
        if reader.take(4) != _MAGIC:
            raise ValueError(
                f"{self.path} needs to be a GGUF file, but begins with "
                f"{self._file.bytes[:4].tobytes()!r} instead of {_MAGIC!r}."
            )

        version = reader.number("I")
        if version not in (2, 3):
            raise reader.error(
                f"its version is {version}; versions 2 and 3 (little-endian) are read"
            )

        tensors, keys = reader.count(24, "tensors"), reader.count(12, "keys")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            name = reader.string()
            if name in self.metadata:
                raise reader.error(f"the key {name!r} comes twice")
            self.metadata[name] = reader.value(reader.number("I"))
        self._entries = self._read_headers(reader, tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._entries[name]
        return self._read(tensor, tensor.start, tensor.size).reshape(tensor.shape)

    def entry(self, name: str, index: int) -> np.ndarray:
        """One entry of a tensor's first axis, such as one expert's matrix; only its bytes are
        read.
        """
        tensor = self._entries[name]
        size = tensor.size // tensor.shape[0]
        return self._read(tensor, tensor.start + index * size, size).reshape(tensor.shape[1:])

    def _read(self, tensor: _Tensor, start: int, size: int) -> np.ndarray:
        raw = self._file.take(start, size).reshape(-1, tensor.format.bytes)
        if tensor.format.weights == 1:
            return tensor.format.read(raw)
        step = _ROWS // tensor.format.weights
        out = aligned((len(raw), tensor.format.weights), np.float32)
        for first in range(0, len(raw), step):
            # A damaged block may hold an infinite scale; whoever uses the weights finds the NaN.
            with np.errstate(invalid="ignore", over="ignore"):
                out[first : first + step] = tensor.format.read(raw[first : first + step])
        return closed(out)

    def _read_headers(self, reader: _Reader, count: int) -> dict[str, _Tensor]:
        told = []
        for _ in range(count):
            name, dims = reader.string(), reader.number("I")
            if dims > _MAX_DIMS:
                raise reader.error(f"{name!r} has {dims} axes; at most {_MAX_DIMS} are allowed")
            shape = tuple(reader.number("Q") for _ in range(dims))[::-1]
            told.append((name, shape, reader.number("I"), reader.number("Q")))

        alignment = self.metadata.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or alignment < 1
            or alignment & (alignment - 1)
            or alignment > 1 << 20
        ):
            raise reader.error(f"general.alignment is {alignment!r}, which is no power of two")

        start = -(-reader.position // alignment) * alignment
        tensors = {}

        for name, shape, kind, offset in told:
            if kind not in FORMATS:
                known = ", ".join(format.name for format in FORMATS.values())
                raise reader.error(
                    f"{name!r} is of type {OTHERS.get(kind, 'number ' + str(kind))}, which is not "
                    f"supported; read are {known}"
                )
            if name in tensors:
                raise reader.error(f"the tensor {name!r} comes twice")
            format = FORMATS[kind]
            if not shape or shape[-1] % format.weights or 0 in shape:
                raise reader.error(
                    f"{name!r} of type {format.name} has the shape {shape}; its rows must be "
                    f"blocks of {format.weights} weights"
                )
            size = math.prod(shape) // format.weights * format.bytes
            if offset % alignment or start + offset + size > len(self._file.bytes):
                raise reader.error(
                    f"{name!r} needs {size:,} bytes at {start + offset:,}, and the file has "
                    f"{len(self._file.bytes):,}"
                )
            tensors[name] = _Tensor(shape, format, start + offset, size)
        _check_places(reader, tensors, start, alignment, len(self._file.bytes))
        return tensors


class _Reader:
    """Reads numbers one after the other; never past the end, and never more than the file's size
    allows.
    """

    def __init__(self, path: Path, content: np.ndarray) -> None:
        self._path, self._content = path, content
        self.position = 0

    def take(self, count: int) -> bytes:
        if count > len(self._content) - self.position:
            raise self.error(
                f"{count:,} bytes are needed at {self.position:,}, and the file has "
                f"{len(self._content):,}"
            )
        taken = self._content[self.position : self.position + count].tobytes()
        self.position += count
        return taken

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, least: int, what: str) -> int:
        """A count of things that take at least `least` bytes each."""
        count = self.number("Q")
        if count * least > len(self._content) - self.position:
            raise self.error(
                f"it claims {count:,} {what}, which its {len(self._content):,} bytes cannot hold"
            )
        return count

    def string(self) -> str:
        return self.take(self.count(1, "bytes of text")).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth == _MAX_DEPTH:
            raise self.error(f"a key has a value of the unknown type {kind}")
        inner = self.number("I")
        if inner in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[inner])
            count = self.count(size, "numbers")
            return np.frombuffer(self.take(count * size), f"<{_SCALARS[inner]}").tolist()
        return [self.value(inner, depth + 1) for _ in range(self.count(8, "values"))]

    def error(self, what: str) -> ValueError:
        return ValueError(
            f"{self._path} needs to be a whole GGUF file, but {what}. If it is cut off or changed, "
            "fetch it again."
        )


def _check_places(
    reader: _Reader, tensors: Mapping[str, _Tensor], start: int, alignment: int, size: int
) -> None:
    """Raises ValueError if tensors overlap, or bytes between or behind them belong to none."""
    if not tensors and size <= start:
        return  # a vocabulary alone: nothing has to be aligned behind its header
    reached, last = start, "its header"
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start != -(-reached // alignment) * alignment:
            what = "overlap" if tensor.start < reached else "have bytes between them"
            raise reader.error(f"{last!r} and {name!r} {what}")
        reached, last = tensor.start + tensor.size, name
    if size not in (reached, -(-reached // alignment) * alignment):
        raise reader.error(f"{size - reached:,} bytes behind {last!r} belong to no tensor")
