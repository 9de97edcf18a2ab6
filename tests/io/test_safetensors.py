"""Safetensors files: read exactly, refused in one sentence when damaged, replaced in one step."""

import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lora_jax.core.json_files import read_json
from lora_jax.data.tokenizers import read_backend
from lora_jax.io import safetensors
from lora_jax.io.gguf import GgufFile
from lora_jax.io.sentencepiece import sentencepiece_tokenizer
from lora_jax.io.tensor_files import ModelFolder, SafetensorsFile
from lora_jax.metrics.predictions import load_predictions

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.asarray([1.5, -2.0, 3.0]).astype(ml_dtypes.bfloat16),
    "c": np.asarray(7, np.int64),
    "d": np.zeros((0, 4), np.float16),
    "e": np.asarray([True, False]),
    "f": np.arange(4, dtype=np.uint8),
}


def test_reading_gives_what_was_written_bit_for_bit(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "x.safetensors", TENSORS, {"who": "me"})
    read = safetensors.read(tmp_path / "x.safetensors")
    assert {n: (t.dtype, t.shape, t.tobytes()) for n, t in read.items()} == {
        n: (t.dtype, t.shape, t.tobytes()) for n, t in TENSORS.items()
    }
    assert safetensors.read_metadata(tmp_path / "x.safetensors") == {"who": "me"}


def test_bfloat16_of_other_writers_is_read(tmp_path: Path) -> None:
    """The bytes as the format's specification has them, not as our own writer makes them."""
    data = TENSORS["b"].tobytes()
    header = json.dumps(
        {"w": {"dtype": "BF16", "shape": [3], "data_offsets": [0, len(data)]}}
    ).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    read = safetensors.read(tmp_path / "x.safetensors")["w"]
    assert np.array_equal(np.asarray(read, np.float32), [1.5, -2.0, 3.0])


def damaged(whole: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut in the header": whole[:20],
        "cut in the data": whole[:-3],
        "too long": whole + b"junk",
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "a web page": b"<!DOCTYPE html><html>not found</html>" * 10,
    }


@pytest.mark.parametrize("how", damaged(b""))
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, how: str) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.write(path, TENSORS)
    path.write_bytes(damaged(path.read_bytes())[how])
    for read in (
        safetensors.read,
        safetensors.read_metadata,
        lambda p: dict(ModelFolder(p.parent)),
    ):
        with pytest.raises(
            ValueError,
            match=r"model.safetensors needs to be a whole safetensors file, but .* fetch it again",
        ):
            read(path)


def test_a_missing_file_names_those_that_are_there(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "adapter.safetensors", TENSORS)
    with pytest.raises(
        FileNotFoundError,
        match=r"no file .*model.safetensors. Safetensors files in its folder: adapter.safetensors",
    ):
        safetensors.read(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="Safetensors files in its folder: none"):
        safetensors.read(tmp_path / "nowhere" / "model.safetensors")


# --- shards --------------------------------------------------------------------------------------------------------


def shards(folder: Path, index: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    parts = {"one.safetensors": ("a", "b"), "two.safetensors": ("c", "e")}
    for file, names in parts.items():
        safetensors.write(folder / file, {name: TENSORS[name] for name in names})
    found = {name: file for file, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": found | (index or {})})
    )
    return folder


def test_shards_are_read_together(tmp_path: Path) -> None:
    read = dict(ModelFolder(shards(tmp_path)))
    assert set(read) == {"a", "b", "c", "e"} and np.array_equal(read["a"], TENSORS["a"])


def test_shards_that_are_not_what_the_index_says_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lack 1 tensors that .*index.json lists, such as 'z'"):
        dict(ModelFolder(shards(tmp_path / "1", {"z": "two.safetensors"})))
    with pytest.raises(
        ValueError, match=r"one.safetensors holds 'a', which .* places in 'two.safetensors'"
    ):
        dict(ModelFolder(shards(tmp_path / "2", {"a": "two.safetensors"})))
    with pytest.raises(
        FileNotFoundError, match="no file .*three.safetensors. .*one.safetensors, two.safetensors"
    ):
        dict(ModelFolder(shards(tmp_path / "3", {"z": "three.safetensors"})))
    for text in ("{", "[]", "{}", '{"weight_map": 3}'):
        (shards(tmp_path / "4") / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match="needs a JSON object with a weight_map"):
            dict(ModelFolder(tmp_path / "4"))


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="but holds nothing. Give the folder of a Hugging Face model"
    ):
        dict(ModelFolder(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        FileNotFoundError,
        match="holds pytorch_model.bin. Pickled weights are not read, since loading them can run code",
    ):
        dict(ModelFolder(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no such folder"):
        dict(ModelFolder(tmp_path / "nowhere"))


# --- writing -------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_old_file_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.write(path, TENSORS)
    before = path.read_bytes()

    def full(tensors: Any, name: str, metadata: Any = None) -> None:
        Path(name).write_bytes(before[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors, "save_file", full)
    with pytest.raises(
        OSError,
        match="could not be written: .*No space left on device. Free some space or choose another folder; what was there is kept",
    ):
        safetensors.write(path, {"a": TENSORS["a"]})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_really_full_device_is_an_os_error() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with pytest.raises(OSError, match="could not be written"):
        safetensors.write("/dev/full/x.safetensors", TENSORS)


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere" / "x.safetensors", tmp_path / "file" / "x.safetensors"):
        with pytest.raises(OSError, match="could not be written"):
            safetensors.write(path, TENSORS)


def test_an_index_says_which_file_holds_what_and_the_bytes_of_all(tmp_path: Path) -> None:
    shards = [{"a": TENSORS["a"]}, {"b": TENSORS["b"], "c": TENSORS["c"]}]
    safetensors.write_folder(tmp_path, shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 6 * 4 + 3 * 2 + 8
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    assert index["weight_map"] == {"a": first, "b": second, "c": second}
    assert set(ModelFolder(tmp_path)) == {"a", "b", "c"}


def test_arrays_that_are_not_contiguous_are_written_by_value(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "x.safetensors", {"t": TENSORS["a"].T, "s": np.arange(10)[::3]})
    read = safetensors.read(tmp_path / "x.safetensors")
    assert np.array_equal(read["t"], TENSORS["a"].T) and np.array_equal(read["s"], [0, 3, 6, 9])


@pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="only Linux says which pages of a file are held"
)
def test_of_a_file_no_more_is_held_than_the_last_tensor(tmp_path: Path) -> None:
    path, size = tmp_path / "x.safetensors", 2**20
    safetensors.write(path, {name: np.ones(size, np.float32) for name in "abcd"}, {})
    read = safetensors.SafetensorsFile(path)
    assert sum(float(read[name].sum()) for name in "abcd") == 4 * size
    after = Path("/proc/self/smaps").read_text().split(str(path))[1]
    held = int(after.split("Rss:")[1].split()[0]) * 1024
    assert (
        0 < held < 6 * size
    )  # Of four tensors of 4 bytes a number one, and what the system reads ahead.


@pytest.mark.parametrize(
    "read",
    [SafetensorsFile, GgufFile, read_backend, sentencepiece_tokenizer, read_json, load_predictions],
)
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)

    def refused(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(OSError, match="Permission denied") as caught:
        read(path)
    assert str(path) in str(caught.value) and "etch it again" not in str(caught.value)
