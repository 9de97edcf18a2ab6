"""A file that is cut into several wheels is put together, checked, and kept."""

import hashlib
import os
import zipfile

import pytest

from lora_jax.io import hub


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """Two made-up wheels with halves of b'hello world', and a download that copies them."""
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))
    store, wheels = tmp_path / "store", []
    store.mkdir()
    for n, half in enumerate((b"hello ", b"world")):
        file = store / f"part{n}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"part{n}/data/half", half)
            archive.writestr(f"part{n}/__init__.py", "")
        wheels.append(
            hub.Wheel(
                f"part{n}", "1.0", hashlib.sha256(file.read_bytes()).hexdigest(), f"part{n}/data", 1
            )
        )
    fetched = []

    def download(wheel, folder):
        fetched.append(wheel.package)
        target = folder / f"{wheel.package}.whl"
        target.write_bytes((store / f"{wheel.package}-1.0-py3-none-any.whl").read_bytes())
        return target

    monkeypatch.setattr(hub, "_download", download)
    whole = hashlib.sha256(b"hello world").hexdigest()
    monkeypatch.setitem(hub.PIECES, "made-up", hub.Pieces(tuple(wheels), "hello.txt", whole))
    return fetched


def test_pieces_are_joined_once(pieces):
    folder = hub.resolve("made-up")
    assert (folder / "hello.txt").read_bytes() == b"hello world" and len(
        list(folder.iterdir())
    ) == 1
    assert hub.resolve("made-up") == folder and pieces == ["part0", "part1"]


def test_a_whole_that_differs_is_refused_and_not_kept(pieces, monkeypatch, tmp_path):
    wheels = hub.PIECES["made-up"].wheels
    monkeypatch.setitem(
        hub.PIECES, "made-up", hub.Pieces(wheels[::-1], "hello.txt", hub.PIECES["made-up"].sha256)
    )
    with pytest.raises(ValueError, match="put together needs sha256"):
        hub.resolve("made-up")
    assert not list((tmp_path / "cache" / "wheels").iterdir())


def test_a_kept_file_that_was_changed_is_refused_and_one_that_was_copied_is_not(pieces):
    folder = hub.resolve("made-up")
    file = folder / "hello.txt"
    os.utime(file, (1, 1))  # as a copy has it
    assert hub.resolve("made-up") == folder
    file.write_bytes(b"hello w0rld")
    with pytest.raises(ValueError, match="hello.txt is not what was fetched: .* Delete .*made-up-"):
        hub.resolve("made-up")
    file.unlink()
    with pytest.raises(ValueError, match="it was changed or is gone"):
        hub.resolve("made-up")
    assert pieces == ["part0", "part1"]


def test_what_a_killed_fetch_left_is_deleted_after_a_day(pieces, tmp_path):
    cache = tmp_path / "cache" / "wheels"
    for name in ("fetching-old", "fetching-new"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / "fetching-old", (1, 1))
    hub.resolve("made-up")
    assert (cache / "fetching-new").is_dir() and not (cache / "fetching-old").exists()


def test_names_of_pieces_are_known_to_errors():
    with pytest.raises(FileNotFoundError, match="nearest: 'gemma3-270m'"):
        hub.resolve("gemma3-270")
