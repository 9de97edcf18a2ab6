"""Pages that are made from the sources when the documentation is built: a page of the reference for
each package, of the names in its `__init__.pyi`, and every error that the library raises.

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


def errors() -> dict[str, str]:
    """The page of all error texts; what an error fills in is an ellipsis."""
    lines = [
        "# Errors, by text",
        "Each text says what was needed, what came and what to do; `…` stands for what it fills in. "
        "Search this page for a few words of yours.",
    ]
    for file in sorted((ROOT / "lora_jax").rglob("*.py")):
        texts = dict.fromkeys(texts_of(ast.parse(file.read_text())))
        if texts:
            lines.append(f"## {file.relative_to(ROOT)}")
            lines += [f"- {kind}: `{text.replace('`', chr(39))}`" for kind, text in texts]
    return {"errors.md": "\n\n".join(lines) + "\n"}


def texts_of(tree: ast.Module) -> list[tuple[str, str]]:
    """(class, text) of every error that is raised with a text."""
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
            continue
        text = " ".join(said(node.exc.args[0]).split())
        if len(text.replace("…", "")) > 15:
            found.append((ast.unparse(node.exc.func), text))
    return found


def said(node: ast.expr) -> str:
    """The words of an expression that is a text, or an ellipsis."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return said(node.left) + said(node.right)
    return "…"


# Of W with n inputs and m outputs at rank r: the update, and how many numbers are trained.
METHODS = {
    "lora": ("scale · a b", "r * (n + m)", "Hu et al. 2021, arXiv 2106.09685"),
    "lora_fa": ("scale · a b, a as it was drawn", "r * m", "Zhang et al. 2023, arXiv 2308.03303"),
    "vera": ("a diag(gain) b diag(out_gain), a and b random and shared", "r + m", "Kopiczko et al. 2023, arXiv 2310.11454"),
    "adalora": ("scale · a diag(gain) b, ranks are taken away", "r * (n + m) + r", "Zhang et al. 2023, arXiv 2303.10512"),
    "qa_lora": ("scale · pool(x) a b, over groups of g inputs", "r * (n // g + m)", "Xu et al. 2023, arXiv 2309.14717"),
    "lora_xs": ("scale · U R V, U and V singular vectors of W", "r * r", "Bałazy et al. 2024, arXiv 2405.17604"),
    "miss": ("one r x m matrix, the same for every r inputs", "r * m", "Kang and Yin 2024, arXiv 2409.15371"),
    "loha": ("scale · (a1 b1) times (a2 b2), entry by entry", "2 * r * (n + m)", "Hyeon-Woo et al. 2021, arXiv 2108.06098"),
    "lokr": ("scale · Kronecker product of a small matrix and a low-rank one", "", "Yeh et al. 2023, arXiv 2309.14859"),
    "gralora": ("blocks x blocks of low-rank products of rank r / blocks", "r * (n + m)", "Jung et al. 2025, arXiv 2505.20355"),
    "hira": ("W times (a b), entry by entry", "r * (n + m)", "Huang et al. 2025, ICLR"),
    "oft": ("inputs are rotated, r of them together; the weight is multiplied, not added to", "n * (r - 1) // 2", "Qiu et al. 2023, arXiv 2306.07280"),
    "fourierft": ("scale · inverse Fourier transform of a few trained coefficients; the scale is alpha / rank, and PEFT's 150", "r * (n + m)", "Gao et al. 2024, arXiv 2405.03003"),
    "shira": ("a few entries of the weight, chosen at the start", "r * (n + m)", "Bhardwaj et al. 2024, arXiv 2406.13175"),
}  # fmt: skip


def methods() -> dict[str, str]:
    """The page of the variants."""
    lines = [
        "# Methods",
        "Of a weight W with n inputs and m outputs at rank r (`lora.rank`); scale is alpha / r unless "
        "`lora.scaling` says otherwise. What goes with which base and module, and what is said where "
        "it does not: `experiments/MATRIX.md`. What was measured of them: [claims](papers.md).",
        "| `lora.variant` | update | trained numbers | paper |\n|---|---|---|---|\n"
        + "\n".join(
            f"| `{name}` | {update} | {f'`{count}`' if count else 'depends on the divisors of n and m'} "
            f"| {paper} |"
            for name, (update, count, paper) in METHODS.items()
        ),
        "`lora.dora=true` adds a magnitude for each output (m numbers; Liu et al. 2024, arXiv "
        "2402.09353). `lora.init` chooses the first values; the base stays as it is stored.",
    ]
    return {"methods.md": "\n\n".join(lines) + "\n"}


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

    for path, text in (reference() | errors() | methods() | papers()).items():
        files.append(File.generated(config, path, content=text))
    return files
