"""Sealed host arrays are shared with jax on a CPU; what somebody could still write to is copied."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lora_jax.core import host
from lora_jax.core.host import Filling, filled, to_device


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


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("cut", [None, ("x",), (None, None, None, "x"), (None,)], ids=str)
@pytest.mark.parametrize("is_host", [True, False], ids=["host", "device"])
def test_parts_come_together_where_the_array_is_to_lie(is_host, cut, kind, monkeypatch):
    """Also in the memory of a device that is not the host's, to which pieces of them are sent."""
    monkeypatch.setattr(host, "_is_host", lambda device: is_host)
    monkeypatch.setattr(host, "_SENT", 40)
    place = None
    if cut is not None:
        place = NamedSharding(jax.make_mesh((2,), ("x",)), PartitionSpec(*cut))
    whole = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, 3, 4, 6)
    filling = Filling(whole.shape, ml_dtypes.bfloat16, place)
    for index in [(1, 2), (0, 1), (1, 0), (0, 2), (0, 0), (1, 1)]:
        turned = np.asfortranarray(whole[index])  # as a file has it
        filling.put(index, kind(turned, dtype=np.float32))
    array = filling.done()
    assert place is None or array.sharding == place
    assert array.dtype == jnp.bfloat16
    np.testing.assert_array_equal(array, whole.astype(ml_dtypes.bfloat16))


def test_devices_that_are_the_hosts_share_what_is_whole_on_each():
    place = NamedSharding(jax.make_mesh((2,), ("x",)), PartitionSpec())
    filling = Filling((3, 16), np.float32, place)
    filling.put((), np.ones((3, 16), np.float32))
    one, two = (shard.data.unsafe_buffer_pointer() for shard in filling.done().addressable_shards)
    assert one == two
