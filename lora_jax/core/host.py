"""Host arrays that a jax.Array on a CPU can share instead of copying: aligned as XLA wants them, and closed to writing when they are full."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ALIGNMENT = 64  # bytes; XLA on a CPU copies what is not aligned so


def host_array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of these sizes that is not filled yet. Fill it, then `seal` it."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    owner = np.empty(size + _ALIGNMENT, np.uint8)
    start = -owner.ctypes.data % _ALIGNMENT
    return owner[start : start + size].view(dtype).reshape(shape)


def seal(array: np.ndarray) -> np.ndarray:
    """The same array, which nobody writes to from now on."""
    part = array
    while isinstance(part, np.ndarray):
        part.flags.writeable = False
        part = part.base
    return array


def to_device(array: Any) -> jax.Array:
    """The array as a jax.Array: shared where nobody can write to it any more, otherwise a copy.

    A view of a mapped file is copied, since the file can change.
    """
    part = array
    while isinstance(part, np.ndarray) and not part.flags.writeable:
        part = part.base
    return jax.device_put(array) if part is None and array is not None else jnp.asarray(array)
