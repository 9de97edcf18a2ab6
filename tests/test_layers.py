"""Who may import whom, and how long a file may be: the architecture, checked over the syntax
trees.
"""

import ast
import graphlib
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "lora_jax").rglob("*.py"))

MODULE_OF = {
    path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in FILES
}
MODULES = set(MODULE_OF.values())

# Each package with all that it may import of ours. Settings are plain data checked against two
# tables of names.
SETTINGS = {"config"}
ADAPT = {"adapters", "kernels", "core"}
ALLOWED: dict[str, set[str]] = {
    "core": {"core"},
    "kernels": {"kernels", "core"},
    "adapters": ADAPT,
    "models": {"models", "core.order", "core.notice", "core.platform"},
    "data": {"data", "core.cache", "core.extras", "core.json_files", "core.tables"},
    "metrics": {
        "metrics",
        "statistics",
        "core.extras",
        "core.json_files",
        "core.paths",
        "core.replacing",
        "core.tables",
    },
    "statistics": {"statistics"},
    "io": {"io", "core", "models", "data.text_tokenizers", "data.tokenizers"},
    "config": {
        "config",
        "core.extras",
        "core.codebooks",
        "core.init",
        "core.variants",
        "data.recipes",
    },
    "generation": {"generation", "data", "io", "models"} | ADAPT,
    "tasks": {"tasks", "metrics", "statistics", "generation", "data", "io", "models"}
    | SETTINGS
    | ADAPT,
    "training": {"training", "tasks", "metrics", "statistics", "data", "io", "models"}
    | SETTINGS
    | ADAPT,
    "analysis": {
        "statistics",
        "analysis",
        "training",
        "tasks",
        "metrics",
        "data",
        "io",
        "models",
    }
    | SETTINGS
    | ADAPT,
    "sweeps": {
        "statistics",
        "sweeps",
        "analysis",
        "training",
        "tasks",
        "metrics",
        "data",
        "io",
    }
    | {"models"}
    | SETTINGS
    | ADAPT,
}
TOP = {"commands", "cli", "__main__", "__init__"}


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "lora_jax").with_suffix("").parts
    return parts[0]


def imports(path: Path) -> list[tuple[str, int]]:
    """Absolute names of all that a file imports, wherever in it, with lines; relative imports are
    resolved.
    """
    package = ["lora_jax", *path.relative_to(ROOT / "lora_jax").parent.parts]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join(
                    [
                        *package[: len(package) - node.level + 1],
                        *([node.module] if node.module else []),
                    ]
                )
                if node.level
                else node.module
            )
            # `from lora_jax.core import codebooks` imports a module of that name.
            found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    package = package_of(path)
    if package in TOP:
        return
    assert package in ALLOWED, f"{path} is in a package that the import rules do not know"
    ours = [
        (name.removeprefix("lora_jax."), line)
        for name, line in imports(path)
        if name.startswith("lora_jax.")
    ]
    wrong = [
        (name, line)
        for name, line in ours
        if not any(f"{name}.".startswith(f"{allowed}.") for allowed in ALLOWED[package])
    ]
    assert wrong == [], f"{package} imports {wrong}"


def ours(path: Path) -> set[str]:
    """The modules of ours that a file imports."""
    found = set()
    for name, _ in imports(path):
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]
        found.add(name)
    return (found & set(MODULES)) - {"lora_jax", MODULE_OF[path]}


@pytest.mark.parametrize("depth", [None, 2], ids=["files", "packages"])
def test_there_is_no_circle_of_imports(depth: int | None) -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        if path.parent == ROOT / "lora_jax" and depth:
            continue  # The root's names and the command line stand above all packages.
        short = lambda name: ".".join(name.split(".")[:depth])
        one = short(MODULE_OF[path])
        graph.setdefault(one, set()).update({short(name) for name in ours(path)} - {one})
    tuple(graphlib.TopologicalSorter(graph).static_order())  # A circle is an error that names it.


def test_what_kind_a_model_is_is_asked_in_models_io_and_tasks_alone() -> None:
    kinds = {"Encoder", "Decoder", "T5"}
    for path in FILES:
        if package_of(path) in ("models", "io", "tasks"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                assert not names & kinds, f"{path}:{node.lineno}"


def test_who_traces_asks_for_the_platform_in_one_place() -> None:
    asking = [path for path in FILES if "default_backend" in path.read_text()]
    assert asking == [ROOT / "lora_jax" / "core" / "platform.py"]


def test_nothing_below_imports_the_commands() -> None:
    for path in FILES:
        if package_of(path) not in TOP:
            assert not [
                name
                for name, _ in imports(path)
                if name.startswith(("lora_jax.cli", "lora_jax.commands"))
            ]


def test_core_knows_no_linen_module() -> None:
    for path in FILES:
        if package_of(path) in ("core", "kernels"):
            assert not [
                name
                for name, _ in imports(path)
                if name.startswith(("flax.linen", "optax", "orbax"))
            ], path


@pytest.mark.parametrize(
    "package",
    [
        "core",
        "kernels",
        "adapters",
        "models",
        "data",
        "io",
        "metrics",
        "tasks",
        "training",
        "sweeps",
        "commands",
    ],
)
def test_no_library_file_imports_a_peer(package: str) -> None:
    peers = ("torch", "transformers", "peft", "bitsandbytes", "tensorflow.")
    for path in FILES:
        if package_of(path) == package:
            assert not [
                name
                for name, _ in imports(path)
                if f"{name}.".startswith(tuple(f"{p.rstrip('.')}." for p in peers))
            ], path


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length >= 600} == {}
    assert statistics.median(lengths.values()) < 180


def test_every_public_name_is_there() -> None:
    import lora_jax

    missing = [name for name in lora_jax.__all__ if not hasattr(lora_jax, name)]
    assert missing == []
