"""Rows of every kind of file, and what a wrong row gets: file, line and reason, or a counted
skip.
"""

import json
from pathlib import Path

import pytest

from lora_jax.data.files import read_file
from lora_jax.data.records import Problems

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
    assert [dict(row.fields) for row in read_file(write(tmp_path, suffix), Problems())] == ROWS


BROKEN = {
    "a.jsonl": (
        b'{"text": "a"}\n{"text": \n[1]\n{"text": "caf\xe9"}\n{"text": "b", "text": "c"}\n{"text": "z"}\n',
        [2, 3, 4, 5],
        ["not JSON", "one JSON object", "0xe9", "'text' more than once"],
    ),
    "a.csv": (b"text,label\na,1\nb\nc,caf\xe9\nz,2\n", [3, 4], ["2 fields", "0xe9 is not UTF-8"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_row_names_file_line_and_reason_or_is_counted(tmp_path, name):
    content, lines, words = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}:{lines[0]}: .*{words[0]}.*on_error=skip"):
        list(read_file(tmp_path / name, Problems()))
    problems = Problems("skip")
    kept = list(read_file(tmp_path / name, problems))
    assert len(kept) == 2 and len(problems) == len(lines)
    assert all(f"{name}:{line}" in str(problems) for line in lines)
    assert f"{len(lines)} rows left out" in str(problems)


def test_a_large_file_is_read_row_by_row(tmp_path):
    """The first row of a file comes before the rest of it is read: a pipe that is never closed
    would block otherwise.
    """
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(20_000)))
    rows = read_file(path, Problems())
    assert next(rows).fields == {"text": "0"}
    import tracemalloc

    tracemalloc.start()
    for _ in range(10_000):
        next(rows)
    # 10,000 rows as dicts would take 3 MB.
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xlsx", b"x", "one of the suffixes"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"a,a\n1,2\n", "2 columns named 'a'"),
        ("a.csv", b'a,"b" c\n1,2\n', "a.csv: the header cannot be parsed"),
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
        list(read_file(tmp_path / name, Problems("skip")))


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "reviews.csv").write_text("a\n")
    with pytest.raises(FileNotFoundError, match="Nearest: 'reviews.csv'"):
        list(read_file(tmp_path / "review.csv", Problems()))


def test_a_lone_quote_in_a_tsv_is_a_quote_and_merges_no_rows(tmp_path):
    """GLUE's and many other TSVs quote nothing: one row a line, whatever its quotes."""
    lines = ['"tis odd\t1', "plain\t0", 'he said "x"\t1', '"quoted ""so""\t"\t0', '"lone\t1']
    (tmp_path / "a.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    rows = list(read_file(tmp_path / "a.tsv", Problems()))
    assert [row.fields["text"] for row in rows] == [
        '"tis odd', "plain", 'he said "x"', 'quoted "so"\t', '"lone'
    ]  # fmt: skip
    assert [row.place.rpartition(":")[2] for row in rows] == ["2", "3", "4", "5", "6"]


def test_a_quote_that_a_csv_does_not_close_names_all_lines_that_it_took(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"lone,0\nb,1\n"c"d,0\ne,1\n')
    problems = Problems("skip")
    rows = list(read_file(tmp_path / "a.csv", problems))
    assert [row.fields["text"] for row in rows] == ["e"]
    assert "a.csv:2-4" in str(problems)


def test_a_row_over_several_lines_is_placed_where_it_begins(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"one\ntwo",0\nb,1\n')
    rows = list(read_file(tmp_path / "a.csv", Problems()))
    assert [row.place.rpartition(":")[2] for row in rows] == ["2", "4"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_utf_16_is_named(tmp_path, name):
    (tmp_path / name).write_bytes("text,label\na,1\n".encode("utf-16"))
    with pytest.raises(ValueError, match=rf"{name}' needs to be UTF-8, but is UTF-16.*iconv"):
        list(read_file(tmp_path / name, Problems("skip")))


def test_line_separators_inside_json_strings_cut_no_line(tmp_path):
    texts = ["a\u2028b", "c\u0085d", "e\u000cf"]
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    assert [row.fields["text"] for row in read_file(tmp_path / "a.jsonl", Problems())] == texts


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": ' + "9" * 5000 + "}"])
def test_json_that_python_refuses_is_a_wrong_row(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match="a.jsonl:2: .*no JSON that can be read"):
        list(read_file(tmp_path / "a.jsonl", Problems()))


def test_two_columns_of_one_name_are_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table([["a"], ["0"], ["1"]], names=["text", "label", "label"])
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text,label,label\na,0,1\n")
    for name in ("a.parquet", "a.csv"):
        with pytest.raises(ValueError, match=rf"{name} has 2 columns named 'label'"):
            list(read_file(tmp_path / name, Problems()))
