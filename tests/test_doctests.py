"""The examples in docstrings are real."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in sorted((ROOT / "lora_jax").rglob("*.py"))
    if ">>> " in file.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_its_examples_give_what_they_say(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:  # of an extra that is not installed
        pytest.skip(str(missing))
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    found = doctest.DocTestFinder().find(module)
    examples = [test for test in found if test.examples]
    assert examples, "none is found: a docstring that is no module's, class's or function's?"
    for test in examples:
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
