"""Host arrays that a jax.Array on a CPU can share instead of copying: aligned as XLA wants them,
and closed to writing when they are full.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.core.notice import say_once

_ALIGNMENT = 64  # bytes; XLA on a CPU copies what is not aligned so


def filled(
    shape: tuple[int, ...], dtype: Any, parts: Iterable[tuple[Any, np.ndarray]]
) -> np.ndarray:
    """An array of these sizes made of `parts`, each put at its index as soon as it comes; nobody
    writes to it afterwards.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    owner = np.empty(size + _ALIGNMENT, np.uint8)
    start = -owner.ctypes.data % _ALIGNMENT
    array = owner[start : start + size].view(dtype).reshape(shape)
    for index, part in parts:
        array[index] = part
    closed = array
    while isinstance(closed, np.ndarray):  # What it is a view of as well.
        closed.flags.writeable = False
        closed = closed.base
    return array


def to_device(array: Any) -> jax.Array:
    """The array as a jax.Array: shared where nobody can write to it any more, otherwise a copy.

    A view of a mapped file is copied, since the file can change.
    """
    part = array
    while isinstance(part, np.ndarray) and not part.flags.writeable:
        part = part.base
    return jax.device_put(array) if part is None else jnp.asarray(array)


@functools.cache
def can_offload() -> bool:
    """Whether the default device has a host memory to move arrays to; where it has none, that is
    printed once, with the reason.
    """
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
