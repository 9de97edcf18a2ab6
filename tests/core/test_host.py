"""Sealed host arrays are shared with jax on a CPU; what somebody could still write to is copied."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lora_jax.core.host import filled, to_device


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.uint8])
def test_a_sealed_array_is_shared_and_closed(dtype):
    array = filled((3, 5, 7), dtype, enumerate(np.arange(105).reshape(3, 5, 7)))
    shared = to_device(array)
    assert shared.unsafe_buffer_pointer() == array.ctypes.data
    assert shared.dtype == dtype
    np.testing.assert_array_equal(np.asarray(shared, np.float32), np.arange(105).reshape(3, 5, 7))
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        array.base[0] = 1


def test_what_can_be_written_to_is_copied(tmp_path: Path):
    room = np.empty(80, np.float32)
    open_array = room[-room.ctypes.data % 64 // 4 :][
        :64
    ]  # Aligned: only its being open keeps it from being shared.
    open_array[...] = 1
    view = open_array[:]
    view.flags.writeable = False  # Closed itself, but not what it is a view of.
    open_array.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, mode="r")
    copies = [to_device(x) for x in (open_array, view, mapped)]
    jax.block_until_ready(copies)
    open_array[...] = 2
    (2 * np.ones(64, np.float32)).tofile(tmp_path / "x")
    assert all((np.asarray(copy) == 1).all() for copy in copies)


def test_other_things_than_host_arrays_become_arrays():
    array = jnp.arange(3)
    assert to_device(array).unsafe_buffer_pointer() == array.unsafe_buffer_pointer()
    assert to_device(2.5).dtype == jnp.float32
