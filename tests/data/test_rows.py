"""Rows of every kind of file, and what a wrong row gets: file, line and reason, or a counted
skip.
"""

import json
from pathlib import Path

import pytest

from lora_jax.data.rows import Problems, read_rows

ROWS = [{"text": f"né {i}", "label": "ab"[i % 2]} for i in range(5)]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"a{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS))
    elif suffix == ".json":
        path.write_text(json.dumps({"data": ROWS}))
    elif suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        mark = "\t" if suffix == ".tsv" else ","
        path.write_text(
            "\ufefftext"
            + mark
            + "label\n"
            + "\n".join(f'"{row["text"]}"{mark}{row["label"]}' for row in ROWS)
        )
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, suffix):
    assert [dict(row.fields) for row in read_rows(write(tmp_path, suffix), Problems())] == ROWS


BROKEN = {
    "a.jsonl": (
        b'{"text": "a"}\n{"text": \n[1]\n{"text": "caf\xe9"}\n{"text": "z"}\n',
        [2, 3, 4],
        ["not JSON", "one JSON object", "0xe9"],
    ),
    "a.csv": (b"text,label\na,1\nb\nc,caf\xe9\nz,2\n", [3, 4], ["2 fields", "0xe9 is not UTF-8"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_row_names_file_line_and_reason_or_is_counted(tmp_path, name):
    content, lines, words = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}:{lines[0]}: .*{words[0]}.*on_error=skip"):
        list(read_rows(tmp_path / name, Problems()))
    problems = Problems("skip")
    kept = list(read_rows(tmp_path / name, problems))
    assert len(kept) == 2 and len(problems) == len(lines)
    assert all(f"{name}:{line}" in str(problems) for line in lines)
    assert f"{len(lines)} rows left out" in str(problems)


def test_a_large_file_is_read_row_by_row(tmp_path):
    """The first row of a file comes before the rest of it is read: a pipe that is never closed
    would block otherwise.
    """
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(200_000)))
    rows = read_rows(path, Problems())
    assert next(rows).fields == {"text": "0"}
    import tracemalloc

    tracemalloc.start()
    for _ in range(100_000):
        next(rows)
    # 100,000 rows as dicts would take 30 MB.
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xlsx", b"x", "one of the suffixes"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"a,a\n1,2\n", "2 columns named 'a'"),
        ("a.json", b"[1,", "not JSON"),
        ("a.json", b'"x"', "an array|needs a JSON array"),
        ("a.parquet", b"PAR1 no", "no whole Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_whatever_the_policy(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=words):
        list(read_rows(tmp_path / name, Problems("skip")))


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "reviews.csv").write_text("a\n")
    with pytest.raises(FileNotFoundError, match="Nearest: 'reviews.csv'"):
        list(read_rows(tmp_path / "review.csv", Problems()))
