"""Arrays that are filled part by part where they are to lie, and weights still in files.

On the host they are aligned as XLA wants them, and closed to writing when they are full: a
jax.Array on a CPU can share them instead of copying.
"""

from __future__ import annotations

import functools
import math
import mmap
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from lora_jax.core.notice import say_once

_ALIGNMENT = 64  # bytes; XLA on a CPU copies what is not aligned so
_SENT = 1 << 28  # bytes of a host array that go to another device at a time

Start = tuple[int, ...]
# Given a weight's path and its arrays as ShapeDtypeStructs, in their box: a tree like it with the
# jax.sharding.Sharding of each, or None for the default device.
Place = Callable[[str, Any], Any]


class Filling:
    """An array that comes in parts, each of which goes to the devices that it is to lie on as soon
    as it is put: besides what is stored on it, the host holds one part.

    Args:
        sharding: where the array is to lie; None is the default device.
        on_host: it becomes a `closed` host array instead.
    """

    def __init__(
        self, shape: Start, dtype: Any, sharding: Sharding | None = None, *, on_host: bool = False
    ) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._sharding, self._on_host = sharding, on_host
        whole = tuple(slice(None) for _ in self.shape)
        places: Any = {None: whole} if sharding is None else {}
        if sharding is not None:
            places = sharding.addressable_devices_indices_map(self.shape)
        shards: dict[Any, _Shard] = {}
        for device, cut in places.items():
            is_host = on_host or _is_host(device or _default_device())
            box = tuple(
                one.indices(size)[:2] for one, size in zip(cut or whole, self.shape, strict=True)
            )
            # Devices that are the host's share what lies on it: a whole array is there once.
            key = (box, None if is_host else device)
            shards.setdefault(key, _Shard(box, self.dtype, is_host)).devices.append(device)
        self._shards = list(shards.values())

    def put(self, index: Any, part: Any, *, column: int = 0) -> None:
        """Puts a host array, or one of jax's, at its index along the leading axes, from a column of
        the last axis on.
        """
        index = np.index_exp[index]
        start = (*index, *[0] * part.ndim)
        start = (*start[:-1], start[-1] + column) if start else ()
        part = part.reshape((1,) * len(index) + part.shape)
        for shard in self._shards:
            shard.put(start, part)

    def done(self) -> Any:
        """The array: of the host, or of jax."""
        if self._on_host:
            return closed(self._shards[0].held())
        arrays = [array for shard in self._shards for array in shard.arrays()]
        if self._sharding is None:
            return arrays[0]
        return jax.make_array_from_single_device_arrays(self.shape, self._sharding, arrays)


class _Shard:
    """A part of an array, `box` by its (start, stop) along each axis, on one device or on the
    host.
    """

    def __init__(self, box: tuple[Start, ...], dtype: np.dtype, is_host: bool) -> None:
        self._box, self._dtype, self._is_host = box, dtype, is_host
        self.devices: list[Any] = []
        self._buffer: Any = None

    def held(self) -> Any:
        """What the parts are written to, made when the first one comes."""
        if self._buffer is None:
            shape = tuple(stop - start for start, stop in self._box)
            self._buffer = (
                aligned(shape, self._dtype)
                if self._is_host
                else jnp.zeros(shape, self._dtype, device=self.devices[0])
            )
        return self._buffer

    def put(self, start: Start, part: Any) -> None:
        inside = [
            (max(low, at), min(high, at + size))
            for (low, high), at, size in zip(self._box, start, part.shape, strict=True)
        ]
        if any(low >= high for low, high in inside):
            return
        taken = part[tuple(slice(low - at, high - at) for (low, high), at in zip(inside, start))]
        there = tuple(low - own for (low, _), (own, _) in zip(inside, self._box))
        if self._is_host:
            taken = np.asarray(taken)
            if self._buffer is None and self._is_all(taken):
                self._buffer = taken.reshape([high - low for low, high in self._box])
                return
            self.held()[tuple(slice(n, n + size) for n, size in zip(there, taken.shape))] = taken
            return
        for offset, piece in _pieces(taken, self._dtype):
            sent = jax.device_put(piece, self.devices[0])
            first = [n + more for n, more in zip(there, offset)]
            # Waited for, or the pieces would pile up on the host.
            self._buffer = jax.block_until_ready(_written(self.held(), sent, first))

    def arrays(self) -> list[Any]:
        """One array a device."""
        buffer = closed(self.held()) if self._is_host else self._buffer
        return [
            jax.device_put(self.held() if buffer is None else buffer, to) for to in self.devices
        ]

    def _is_all(self, taken: np.ndarray) -> bool:
        """Whether a host array is all of this part, and can stay as it lies."""
        whole = taken.size == math.prod(high - low for low, high in self._box)
        return whole and taken.dtype == self._dtype and _is_ready(taken)


@functools.partial(jax.jit, donate_argnums=0)
def _written(buffer: Any, part: Any, start: Any) -> Any:
    return jax.lax.dynamic_update_slice(buffer, part, start)


def _pieces(part: Any, dtype: np.dtype) -> Iterator[tuple[Start, Any]]:
    """(start, piece) of an array in this dtype; of a host array some 256 MB at a time, cut along
    the axis along which it lies on the disk.
    """
    if isinstance(part, jax.Array) or not part.ndim or not part.size:
        yield (0,) * part.ndim, part.astype(dtype)
        return
    axis = int(np.argmax([stride * (n > 1) for stride, n in zip(part.strides, part.shape)]))
    step = max(1, _SENT * part.shape[axis] // (part.size * dtype.itemsize))
    for first in range(0, part.shape[axis], step):
        cut = [slice(None)] * part.ndim
        cut[axis] = slice(first, first + step)
        start = tuple(first if n == axis else 0 for n in range(part.ndim))
        yield start, np.asarray(part[tuple(cut)], dtype, order="C")


def filled(shape: Start, dtype: Any, parts: Iterable[tuple[Any, np.ndarray]]) -> np.ndarray:
    """A host array of these sizes made of `parts`, each put at its index as soon as it comes,
    `closed`.

    A part that is all of it, and closed already, is not copied.
    """
    filling = Filling(shape, dtype, on_host=True)
    for index, part in parts:
        filling.put(index, part)
    return filling.done()


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
        load: given how the weight is to be stored (None: as it is) and where (`Place` of its path;
            None: the default device), an array or a quantised one, whose dense form is never in
            memory as a whole.
        like: of a weight that is quantised in its file, the box with the shape and dtype of each of
            its arrays; it is stored no other way.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        load: Callable[[Any, Place | None], Any],
        place: Place | None = None,
        *,
        like: Any = None,
    ) -> None:
        self.shape, self.dtype, self._load, self._place = shape, np.dtype(dtype), load, place
        self.like = like
        self.ndim, self.size = len(shape), math.prod(shape)
        self._shared: weakref.ref[jax.Array] | None = None

    def load(self, spec: Any) -> Any:
        """The weight, stored so."""
        return self._load(spec, self._place)

    def at(self, place: Place) -> StoredWeight:
        """The weight that will be read to another place."""
        return StoredWeight(self.shape, self.dtype, self._load, place, like=self.like)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        stored = self.load(None)
        return np.asarray(stored if self.like is None else stored.unbox(), dtype)

    def shared(self) -> Any:
        """The weight on its device: one array for all who ask while one of them still holds it. One
        that is quantised is read for each.
        """
        if self.like is not None:
            return self.load(None)
        array = None if self._shared is None else self._shared()
        if array is None:
            array = to_device(self.load(None))
            self._shared = weakref.ref(array)
        return array


def to_device(array: Any) -> Any:
    """The array as a jax.Array: shared where nobody can write to it any more, otherwise a copy; a
    weight that is quantised in its file, as its box.

    A view of a mapped file is copied, since the file can change.
    """
    if isinstance(array, StoredWeight):
        return array.shared()
    return jax.device_put(array) if _is_closed(array) else jnp.asarray(array)


def _default_device() -> jax.Device:
    """Where jax puts what it is not told where to put."""
    device = jax.config.jax_default_device
    return device if isinstance(device, jax.Device) else jax.local_devices()[0]


def _is_host(device: jax.Device) -> bool:
    """Whether the device's memory is the host's."""
    return device.platform == "cpu"


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
