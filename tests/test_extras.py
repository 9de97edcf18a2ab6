"""What the package installs: the core alone adapts, trains and saves; every other package belongs
to an extra that names itself when it is missing.
"""

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Imported where they are there, asked for by nothing.
UNASKED = {"tensorflow"}
# Distributions of another name than their package, where they are not installed.
BY_PACKAGE = {"mlflow": "mlflow-skinny"}


def declared(extra: str | None) -> set[str]:
    """The distributions that the core, or an extra with those it includes, asks for."""
    found: set[str] = set()
    for line in PROJECT["dependencies"] if extra is None else EXTRAS[extra]:
        name, inner = re.match(r"([\w-]+)(?:\[([\w,-]+)\])?", line).groups()
        if name == "lora-jax":
            found |= {name for part in inner.split(",") for name in declared(part)}
        else:
            found.add(normal(name))
    return found


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@functools.cache
def with_what_it_needs(distribution: str) -> frozenset[str]:
    """A distribution and all that installing it brings."""
    found, waiting = set(), [normal(distribution)]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [normal(re.match(r"[\w.-]+", line)[0]) for line in lines if "extra" not in line]
    return frozenset(found)


@functools.cache
def distributions() -> dict[str, set[str]]:
    """The distributions of every importable package."""
    return {
        package: {normal(name) for name in names}
        for package, names in importlib.metadata.packages_distributions().items()
    }


def imports(path: Path) -> list[tuple[str, str | None]]:
    """(package, extra that stands around it) of every import of another package in a file."""
    found: list[tuple[str, str | None]] = []

    def visit(node: ast.AST, extra: str | None) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "needs":
                    extra = call.args[0].value if isinstance(call.args[0], ast.Constant) else extra
        if isinstance(node, ast.Import):
            found.extend((alias.name.partition(".")[0], extra) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append((node.module.partition(".")[0], extra))
        for child in ast.iter_child_nodes(node):
            visit(child, extra)

    visit(ast.parse(path.read_text()), None)
    ours = {"lora_jax", "lab", *sys.stdlib_module_names}
    return [(package, extra) for package, extra in found if package not in ours]


@pytest.mark.parametrize("package", sorted(p.name for p in (ROOT / "lora_jax").iterdir()))
def test_every_import_is_of_a_package_that_the_core_or_a_named_extra_asks_for(package):
    place = ROOT / "lora_jax" / package
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        for name, extra in imports(path) if path.suffix == ".py" else []:
            asked = declared(extra)
            names = distributions().get(name, {normal(BY_PACKAGE.get(name, name))})
            assert names & asked or name in UNASKED, f"{path}: {name} (extra: {extra})"


def test_extras_install_no_second_of_the_core_and_exist():
    for extra in EXTRAS:
        assert declared(extra)
    named = {
        name
        for path in (ROOT / "lora_jax").rglob("*.py")
        for name in re.findall(
            r"""needs\("(\w+)"\)|extra="(\w+)"|lora-jax\[(\w+)\]""", path.read_text()
        )
        for name in name
        if name
    }
    assert named <= set(EXTRAS), named - set(EXTRAS)


def test_the_core_alone_adapts_trains_saves_and_says_what_training_needs():
    core = {name for asked in declared(None) for name in with_what_it_needs(asked)}
    blocked = [package for package, names in distributions().items() if not names & core]
    assert {"ml_collections", "tokenizers", "matplotlib", "grain"} <= set(blocked)
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(set(blocked) - {"lora_jax"})!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import runpy
runpy.run_path({str(ROOT / "tests" / "shared" / "core_alone.py")!r}, run_name="__main__")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0 and "the core alone works" in ran.stdout, ran.stderr


def test_a_wheel_holds_every_package_and_the_configs():
    folders = {file.parent for file in (ROOT / "lora_jax").rglob("*.py")}
    folders |= {file.parent for file in (ROOT / "lora_jax").rglob("assets/*")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    found |= {
        ".".join(("lora_jax", *file.parent.relative_to(ROOT).parts))
        for file in (ROOT / "configs").rglob("*.py")
    }
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(setuptools["packages"]) == found


def test_the_version_that_is_cited_is_the_one_that_is_installed():
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited == PROJECT["version"]
