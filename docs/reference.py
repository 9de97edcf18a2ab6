"""Pages that are made from the sources when the documentation is built: a page of the reference for
each package, of the names in its `__init__.pyi`, and the claims that were run.

pip install -e ".[docs]" && mkdocs build --strict --config-file docs/mkdocs.yml
"""

import ast
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def reference() -> dict[str, str]:
    """The text of each page of the reference, by its path."""
    pages = {}
    for stub in sorted((ROOT / "lora_jax").rglob("__init__.pyi")):
        package = ".".join(stub.parent.relative_to(ROOT).parts)
        says = ast.get_docstring(ast.parse((stub.parent / "__init__.py").read_text()))
        homes = {
            alias.name: f"{package}.{node.module}.{alias.name}"
            for node in ast.parse(stub.read_text()).body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        entries = [f"::: {homes[name]}" for name in sorted(homes, key=str.lower)]
        pages[f"reference/{package}.md"] = "\n\n".join([f"# {package}", says, *entries]) + "\n"
    return pages


def papers() -> dict[str, str]:
    """The page of the claims that were run, by paper, from the ledger's results."""
    rows: dict[str, list[str]] = {}
    for file in sorted((ROOT / "experiments/claims/results").glob("[CN]*.json")):
        result = json.loads(file.read_text())
        claim, ours = result["claim"], "; ".join(part["ours"] for part in result["parts"])
        paper = claim["source"].partition(",")[0]
        cells = (claim["id"], claim["title"], claim["published"], ours, result["verdict"])
        rows.setdefault(paper, []).append(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        )
    lines = [
        "# Claims and papers",
        "What was run here under protocol P, on small models: `experiments/README.md` has models, "
        "protocol and intervals.",
    ]
    for paper in sorted(rows):
        head = "| claim | | published | ours | verdict |\n|---|---|---|---|---|\n"
        lines += [f"## {paper}", head + "\n".join(rows[paper])]
    return {"papers.md": "\n\n".join(lines) + "\n"}


def on_config(config: Any) -> Any:
    """The site's navigation with the reference at its end (called by mkdocs)."""
    config.nav = [*config.nav, {"Reference": list(reference())}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """The site's files with the made ones (called by mkdocs)."""
    from mkdocs.structure.files import File

    for path, text in (reference() | papers()).items():
        files.append(File.generated(config, path, content=text))
    return files
