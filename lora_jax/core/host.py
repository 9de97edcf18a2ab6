"""Host arrays that a jax.Array on a CPU can share instead of copying, and weights still in files.

They are aligned as XLA wants them, and closed to writing when they are full.
"""

from __future__ import annotations

import functools
import math
import mmap
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.core.notice import say_once

_ALIGNMENT = 64  # bytes; XLA on a CPU copies what is not aligned so


def filled(
    shape: tuple[int, ...], dtype: Any, parts: Iterable[tuple[Any, np.ndarray]]
) -> np.ndarray:
    """An array of these sizes made of `parts`, each put at its index as soon as it comes, `closed`.

    A part that is all of it, and closed already, is not copied.
    """
    array, dtype = None, np.dtype(dtype)
    for index, part in parts:
        if index == () and (part.shape, part.dtype) == (shape, dtype) and _is_ready(part):
            return part
        array = aligned(shape, dtype) if array is None else array
        array[index] = part
    return closed(aligned(shape, dtype) if array is None else array)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of these sizes to be filled, which jax on a CPU can share once it is `closed`."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    owner = np.empty(size + _ALIGNMENT, np.uint8)
    start = -owner.ctypes.data % _ALIGNMENT
    return owner[start : start + size].view(dtype).reshape(shape)


def closed(array: np.ndarray) -> np.ndarray:
    """The array, to which nobody can write any more."""
    part: Any = array
    while isinstance(part, np.ndarray):  # What it is a view of as well.
        part.flags.writeable = False
        part = part.base
    return array


class MappedFile:
    """The bytes of a file, mapped into memory. Of what was given before, no page counts as this
    process's memory until it is used again.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:  # which names no file
                raise OSError(error.errno, error.strerror, str(path)) from error
        self.bytes = np.frombuffer(self._map, np.uint8)

    def take(self, start: int, size: int) -> np.ndarray:
        """A view of `size` bytes; pages that were read before are let go."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
        return self.bytes[start : start + size]


class StoredWeight:
    """A weight in a file: its shape is known, and it is read when it is asked for.

    Args:
        load: given how the weight is to be stored (None: as it is), a host array or a quantised
            one, whose dense form is never in memory as a whole.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, load: Callable[[Any], Any]) -> None:
        self.shape, self.dtype, self.load = shape, np.dtype(dtype), load
        self.ndim, self.size = len(shape), math.prod(shape)
        self._shared: weakref.ref[jax.Array] | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.load(None), dtype)

    def shared(self) -> jax.Array:
        """The weight on its device: one array for all who ask while one of them still holds it."""
        array = None if self._shared is None else self._shared()
        if array is None:
            array = to_device(self.load(None))
            self._shared = weakref.ref(array)
        return array


def to_device(array: Any) -> jax.Array:
    """The array as a jax.Array: shared where nobody can write to it any more, otherwise a copy.

    A view of a mapped file is copied, since the file can change.
    """
    if isinstance(array, StoredWeight):
        return array.shared()
    return jax.device_put(array) if _is_closed(array) else jnp.asarray(array)


def _is_ready(array: np.ndarray) -> bool:
    """Whether jax on a CPU can share the array as it lies."""
    ready = array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT == 0
    return ready and _is_closed(array)


def _is_closed(array: Any) -> bool:
    """Whether nobody can write to the array or what it views; a mapped file can change."""
    while isinstance(array, np.ndarray) and not array.flags.writeable:
        array = array.base
    return array is None


@functools.cache
def can_offload() -> bool:
    """Whether the default device has a host memory to move arrays to; if not, says why, once."""
    device = jax.devices()[0]
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if device.platform == "cpu":
        say_once("nothing is offloaded: the device is a CPU, whose memory is the host's.")
    elif "pinned_host" not in kinds:
        say_once(
            f"nothing is offloaded: {device.device_kind} has memories {', '.join(kinds)}, and "
            "offloading needs 'pinned_host'."
        )
    return device.platform != "cpu" and "pinned_host" in kinds
