"""The documentation: made pages are whole, code runs, and names that the stubs export say what they are."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import lora_jax
from lora_jax.config.load import run_file, with_overrides
from lora_jax.core.init import INITIALIZERS
from lora_jax.core.variants import VARIANTS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
MADE = run_file(ROOT / "docs" / "reference.py")
METHODS = run_file(ROOT / "docs" / "methods.py")
ERRORS = run_file(ROOT / "docs" / "errors.py")
# What they give on was said in another process, by a template, or further down.
GIVEN_ON = {
    "core/fake_devices.py": "error",
    "core/hosts.py": "own",
    "core/link.py": "error",
    "data/chat.py": "jinja2.TemplateError(message)",
    "io/bitsandbytes.py": "ValueError(f'shape {shape}')",
    "io/quantized.py": "damaged",
    "training/loop.py": "outcomes[0]",
}


def test_every_exported_function_and_class_is_documented():
    missing = []
    for stub in (ROOT / "lora_jax").rglob("__init__.pyi"):
        for node in ERRORS.parsed(stub).body:
            if not node.module:
                continue
            tree = ERRORS.parsed(stub.parent / f"{node.module.replace('.', '/')}.py")
            kinds = (ast.FunctionDef, ast.ClassDef)
            homes = {one.name: one for one in tree.body if isinstance(one, kinds)}
            missing += [
                f"{stub.parent.name}.{alias.name}"
                for alias in node.names
                if alias.name in homes and not ast.get_docstring(homes[alias.name])
            ]
    assert missing == []


def test_every_method_has_a_page():
    matrix = (ROOT / "experiments" / "MATRIX.md").read_text()
    own = {**METHODS.METHODS, **VARIANTS}
    rows = set(re.findall(r"(?m)^\| ([\w-]+) \| yes", matrix))
    starts = {*INITIALIZERS} - {"kaiming", "gaussian", "corda_kpm"}
    assert (
        own.keys()
        == METHODS.METHODS.keys()
        >= rows - {"pissa_niter_16"} | (starts - {"pissa_niter_16"})
    )
    pages = METHODS.pages()
    assert "`lora.dora=true`: LoRA variant 'lokr' has no factors" in pages["methods/lokr.md"]
    assert "[5] 'PATH' is to be both quantised and trained whole" in pages["methods/full.md"]
    assert "C35" in pages["methods/vera.md"] and "Not measured" in pages["methods/miss.md"]
    assert "lora_ga, end" in pages["methods/lora_ga.md"]


@pytest.mark.parametrize("name", METHODS.METHODS)
def test_a_method_trains_as_many_numbers_as_its_page_says(name):
    method, n, m, r = METHODS.METHODS[name], 64, 96, 4
    file = {"method": "full"} if name == "full" else {}
    assert with_overrides(file, [f"config.{one}" for one in method.settings.split()])
    model, x = nn.Dense(m), jnp.ones((2, n))
    spec = lora_jax.LoraSpec(**({"rank": r, "group_size": 8} | METHODS.specification(method)))
    measures = {"gradient": jnp.ones((n, m)), "inputs": jnp.eye(n)}
    chosen = dict(whole=["kernel"]) if name == "full" else dict(lora=[("kernel", spec)])
    if method.quantised:
        chosen["quant"] = [("kernel", lora_jax.QuantSpec("nf4", 64, False))]
    if measured := INITIALIZERS[spec.init].measures:
        chosen["statistics"] = {"kernel": measures[measured]}

    def made(key):
        params = model.init(key, x)["params"]
        return lora_jax.adapt(model, params, (x,), key=key, **chosen)[1]

    trainable = jax.eval_shape(made, jax.random.key(0))
    expected = eval(method.trained, {"r": r, "n": n, "m": m, "g": 8, "p": 8, "q": 8})
    assert lora_jax.trainable_parameters(trainable) == expected


def test_pages_made_from_sources_hold_what_the_sources_say():
    assert "| C33 |" in MADE.papers()["papers.md"]
    reference = MADE.reference()
    assert "::: lora_jax.adapters.surgery.adapt" in reference["reference/lora_jax.md"]
    assert all(f"reference/lora_jax.{name}.md" in reference for name in ("core", "io", "sweeps"))


def test_every_error_is_found_by_its_words():
    page = " ".join(ERRORS.page().split())
    assert page.count(" of `") > 800
    silent = {}
    for file, raised, scope in ERRORS.raises():
        said = [text for _, (*_, text) in ERRORS.texts(file, raised, scope) if ERRORS.words(text)]
        if not said:
            name = file.relative_to(ERRORS.PACKAGE).as_posix()
            silent.setdefault(name, set()).add(ast.unparse(raised))
        # Whatever is quoted in the line that raises, however it is put together.
        for node in ast.walk(raised):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                piece = " ".join(node.value.replace("`", "'").split())
                assert piece.count(" ") < 4 or piece in page, (file, piece)
    assert silent.keys() == GIVEN_ON.keys()
    assert all(GIVEN_ON[name] in found for name, found in silent.items())


@pytest.mark.parametrize(
    "fails",
    [
        lambda: lora_jax.LoraSpec(rank=0),
        lambda: lora_jax.LoraSpec(variant="lokr", dora=True),
        lambda: lora_jax.LoraSpec(variant="dora"),
        lambda: with_overrides({}, ["config.lora.rnak=3"]),
        lambda: with_overrides({}, ["config.lora.rank=many"]),
        lambda: with_overrides({}, ["config.train=3"]),
        lambda: lora_jax.io.resolve("./bert-bsae"),
        lambda: lora_jax.core.match([("a+", 3)], {"b": 1}, what="lora"),
        lambda: lora_jax.QuantSpec("nf4", 0),
    ],
)
def test_a_message_is_on_the_page(fails):
    with pytest.raises(Exception) as raised:
        fails()
    message = " ".join(str(raised.value).replace("`", "'").split())
    entries = re.findall(r"(?m)^- .*?: `(.*)`$", ERRORS.page())
    known = [".*".join(map(re.escape, re.split("…|⟨.*⟩", entry))) for entry in entries]
    long = [entry for entry in known if len(entry) > 30]
    assert any(re.fullmatch(entry, message) for entry in long), message


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_python_runs(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(code, str(page), "exec"), {})


def test_every_page_is_in_the_navigation():
    text = (ROOT / "docs" / "mkdocs.yml").read_text()
    pages = {page.relative_to(ROOT / "docs" / "pages").as_posix() for page in PAGES}
    assert {*pages, "errors.md", "methods.md", "papers.md"} <= set(re.findall(r"[\w/]+\.md", text))
