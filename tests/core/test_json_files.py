"""JSON of files: what is wrong with it is a ValueError that names the file."""

from pathlib import Path

import pytest

from lora_jax.core.json_files import parse_json, read_json, save_json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "can't decode"),
        (b"[" * 100_000, "recursion"),
        (b"[" * 101 + b"]" * 101, "nested more than 100 deep"),
        (b"9" * 5000, "digits"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b"", "Expecting value"),
        (b'{"b": [{"a": 1, "c": 2, "a": 1}]}', "'a' more than once"),
    ],
)
def test_what_is_no_json_is_refused_with_the_files_name(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"x.json is not JSON .*{message}"):
        parse_json(content, "x.json")


def test_what_is_json_is_its_value(tmp_path: Path) -> None:
    assert (
        parse_json(b"[" * 100 + b"]" * 100, "x")
        and parse_json('"\\ud83d\\ude00"', "x") == "\U0001f600"
    )
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="a.json needs a JSON object"):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="b.json"):
        read_json(tmp_path / "b.json")


def test_what_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", {"b": 1, "a": "é"}, sort_keys=True)
    assert (tmp_path / "a.json").read_text() == '{\n  "a": "\\u00e9",\n  "b": 1\n}\n'
    with pytest.raises(OSError, match="/dev/full could not be written: No space left on device"):
        save_json(Path("/dev/full"), {})
