"""Reading for long is shown on a terminal, in GB of the files and time left; elsewhere nothing is."""

import io
from pathlib import Path

import pytest

from lora_jax.io import reading_bar
from lora_jax.io.reading_bar import reading_shown
from lora_jax.io.weights import open_model

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("folder", ["decoders/phi3", "decoders/qwen2_moe", "t5/v1_0"])
def test_all_bytes_of_the_files_are_counted_as_they_are_read(folder, monkeypatch):
    monkeypatch.setattr(reading_bar, "_PATIENCE", -1)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    noted = []
    note = reading_bar._ReadingBar.note
    noting = lambda bar, *given: noted.append(given) or note(bar, *given)
    monkeypatch.setattr(reading_bar._ReadingBar, "note", noting)
    with reading_shown():
        stored = open_model(GOLDEN / folder)
        stored.read()
    read, total = sum(size for size, _, _ in noted), noted[0][1]
    # Of a tensor that is fused of several all parts, of a tied one no copy.
    assert read == total == sum(tensor.nbytes for tensor in stored.tensors.values())
    said = terminal.getvalue()
    assert f"reading {Path(folder).name}" in said and "left" in said and "kB" in said


@pytest.mark.parametrize(("stream", "quiet"), [(Terminal, True), (io.StringIO, False)])
def test_nothing_is_shown_where_nobody_looks(stream, quiet, monkeypatch):
    monkeypatch.setattr(reading_bar, "_PATIENCE", -1)
    monkeypatch.setattr("sys.stderr", said := stream())
    with reading_shown(quiet=quiet):
        open_model(GOLDEN / "decoders" / "llama").read()
    assert said.getvalue() == ""
