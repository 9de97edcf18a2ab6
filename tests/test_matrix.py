"""The page of which method goes with what says what the library does."""

import importlib.util
import itertools
import re
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "experiments" / "matrix.py"
spec = importlib.util.spec_from_file_location("matrix", FILE)
matrix = importlib.util.module_from_spec(spec)
spec.loader.exec_module(matrix)
matrix.methods()  # Before another test registers a variant of its own.


def test_every_method_has_a_row_and_a_cell_of_each_is_as_it_says():
    text = matrix.PAGE.read_text()
    tables = {part.split(" |")[0]: part for part in text.split("\n| ") if "| Embed |" in part}
    assert "".join(f"| {name} |" for name in matrix.methods()) in re.sub(
        r"(?m)^(\| \S+ \|).*\n", r"\1", text
    )
    assert tables.keys() == set(matrix.BASES)
    notes = dict(re.findall(r"(?m)^(\d+)\. (.*)$", text))
    # Another cell of each method: all bases and kinds have their turn.
    turns = itertools.cycle(itertools.product(matrix.INPUTS, matrix.BASES))
    for name, (kind, base) in zip(matrix.methods(), itertools.islice(turns, 3, None, 3)):
        lines = text.partition(f"| {base} | Dense")[2].splitlines()
        row = next(line for line in lines if line.startswith(f"| {name} |"))
        said = row.split(" | ")[1 + list(matrix.INPUTS).index(kind)].strip(" |")
        where, words = matrix.cell(name, base, kind)
        told = notes[re.search(r"\d+", said)[0]] if "[" in said else ""
        assert (said.startswith("yes"), where in said, told) == (
            not words or bool(where),
            True,
            words,
        )


@pytest.mark.long
def test_the_page_is_what_the_command_writes():
    assert matrix.PAGE.read_text() == matrix.page()
