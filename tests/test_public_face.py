"""The public names: stubs and packages agree, each name is where its stub says, importing is quick,
and a user's program passes `mypy --strict`.
"""

import ast
import functools
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOTTED = re.compile(r"lora_jax(\.\w+)+")
STUBS = sorted((ROOT / "lora_jax").rglob("__init__.pyi"))


def package_of(stub: Path) -> str:
    return ".".join(stub.parent.relative_to(ROOT).parts)


def names_of(stub: Path) -> dict[str, str]:
    """The module of every name of a stub; that of a namespace is itself."""
    found = {}
    for node in ast.parse(stub.read_text()).body:
        assert isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names:
            assert alias.asname == alias.name  # or type checkers take the name for private
            assert alias.name not in found, f"{alias.name} is in {stub} twice"
            found[alias.name] = node.module or alias.name
    return found


@pytest.mark.parametrize("stub", STUBS, ids=package_of)
def test_every_name_of_a_stub_is_what_its_package_gives(stub):
    package = importlib.import_module(package_of(stub))
    names = names_of(stub)
    assert sorted(package.__all__) == sorted(names)
    for name, module in names.items():
        home = importlib.import_module(f"{package.__name__}.{module}")
        value = home if name == module else getattr(home, name)
        assert getattr(package, name) is value, name


@pytest.mark.parametrize("stub", STUBS, ids=package_of)
def test_no_public_name_hides_a_module_of_its_package(stub):
    # `import lora_jax.x.y as m` would give the function.
    modules = {path.stem for path in stub.parent.glob("*.py")}
    assert {name for name, module in names_of(stub).items() if name != module} & modules == set()


def test_the_root_is_small_and_every_package_with_public_names_is_in_it():
    import lora_jax

    names = names_of(ROOT / "lora_jax" / "__init__.pyi")
    namespaces = {name for name, module in names.items() if name == module}
    assert namespaces == {path.parent.name for path in STUBS} - {"lora_jax"}
    assert len(names) - len(namespaces) <= 32
    assert lora_jax.io.Name and lora_jax.config.OptimConfig().learning_rate > 0


def test_importing_the_library_imports_neither_jax_nor_numpy():
    code = (
        "import sys, lora_jax; lora_jax.io, lora_jax.sweeps; dir(lora_jax)\n"
        "print([name for name in ('jax', 'flax', 'numpy', 'optax') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def sources() -> dict[str, str]:
    """What uses the library from outside, by name: scripts as they are, a notebook's cells joined."""
    found = {}
    for folder in ("experiments", "configs", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found[str(path.relative_to(ROOT))] = path.read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        lines = [line for line in "\n".join(code).splitlines() if not line.startswith("%")]
        found[str(path.relative_to(ROOT))] = "\n".join(lines)
    return found


def test_what_scripts_and_notebooks_take_from_the_library_is_there():
    missing = []
    for file, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lora_jax"):
                dotted = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute) and DOTTED.fullmatch(ast.unparse(node)):
                dotted = [ast.unparse(node)]
            else:
                continue
            missing += [f"{file}: {name}" for name in dotted if not resolves(name)]
    assert missing == []


@functools.cache
def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module or an attribute of one, or of what one holds."""
    here, *rest = dotted.split(".")
    value = importlib.import_module(here)
    for name in rest:
        if not hasattr(value, name) and isinstance(value, types.ModuleType):
            if importlib.util.find_spec(f"{value.__name__}.{name}") is None:
                return False
            try:
                importlib.import_module(f"{value.__name__}.{name}")
            except ModuleNotFoundError:  # An extra that is not installed: no more can be known.
                return True
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def test_a_users_program_passes_strict_type_checks(tmp_path):
    program = ROOT / "tests" / "shared" / "typed_program.py"
    check = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    place = ["--cache-dir", str(tmp_path), "--config-file", os.devnull, str(program)]
    ran = subprocess.run([*check, *place], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
