"""The documentation: made pages are whole, code runs, and names that the stubs export say what they are."""

import ast
import functools
import re
from pathlib import Path

import jax
import pytest
from flax import linen as nn

import lora_jax
from lora_jax.config.load import run_file
from lora_jax.core import VARIANTS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
MADE = run_file(ROOT / "docs" / "reference.py")


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def test_every_exported_function_and_class_is_documented():
    missing = []
    for stub in (ROOT / "lora_jax").rglob("__init__.pyi"):
        for node in ast.parse(stub.read_text()).body:
            if not node.module:
                continue
            tree = parsed(stub.parent / f"{node.module.replace('.', '/')}.py")
            kinds = (ast.FunctionDef, ast.ClassDef)
            homes = {one.name: one for one in tree.body if isinstance(one, kinds)}
            missing += [
                f"{stub.parent.name}.{alias.name}"
                for alias in node.names
                if alias.name in homes and not ast.get_docstring(homes[alias.name])
            ]
    assert missing == []


def test_every_variant_is_on_the_page_of_methods_with_what_it_trains():
    assert set(MADE.METHODS) == set(VARIANTS)
    model, x = nn.Dense(24), jax.numpy.ones((2, 16))
    params = model.init(jax.random.key(0), x)["params"]
    for name, (_, count, _) in MADE.METHODS.items():
        if not count:
            continue
        spec = lora_jax.LoraSpec(rank=4, variant=name, group_size=4)
        _, trainable = jax.eval_shape(
            lambda params, spec=spec: lora_jax.adapt(
                model, params, (x,), lora=[("kernel", spec)], key=jax.random.key(1)
            ),
            params,
        )
        expected = eval(count, {"r": 4, "n": 16, "m": 24, "g": 4})
        assert lora_jax.trainable_parameters(trainable) == expected, name


def test_pages_made_from_sources_hold_what_the_sources_say():
    (errors,) = MADE.errors().values()
    assert "rule matches any of … sites" in errors and errors.count("\n- ") > 300
    assert "| C33 |" in MADE.papers()["papers.md"]
    reference = MADE.reference()
    assert "::: lora_jax.adapters.surgery.adapt" in reference["reference/lora_jax.md"]
    assert all(f"reference/lora_jax.{name}.md" in reference for name in ("core", "io", "sweeps"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_python_runs(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(code, str(page), "exec"), {})


def test_every_page_is_in_the_navigation():
    text = (ROOT / "docs" / "mkdocs.yml").read_text()
    pages = {page.relative_to(ROOT / "docs" / "pages").as_posix() for page in PAGES}
    assert {*pages, "errors.md", "methods.md", "papers.md"} <= set(re.findall(r"[\w/]+\.md", text))
