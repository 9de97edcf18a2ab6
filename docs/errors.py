"""The page of all error texts, made from the sources when the documentation is built: whoever searches
it for the words of a message finds it, and where it comes from.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).resolve().parents[1] / "lora_jax"
# What is raised without words: to stop, to go on elsewhere, or to be filled in by a subclass.
SILENT = {"KeyboardInterrupt", "Interrupted", "NotImplementedError", "SystemExit"}
BLANK = "…"
# Where statements hold others.
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")


class Error(NamedTuple):
    """One text: the class of the error ('' where a function gives the words alone), the function
    that says it, and the text with an ellipsis for what it fills in.
    """

    kind: str
    where: str
    text: str


@functools.cache
def parsed(file: Path) -> ast.Module:
    """The syntax tree of a source."""
    return ast.parse(file.read_text())


@functools.cache
def sources() -> tuple[Path, ...]:
    """The package's files."""
    return tuple(sorted(PACKAGE.rglob("*.py")))


Scope = tuple[ast.AST, ...]


def statements(tree: ast.AST, scope: Scope = ()) -> Iterator[tuple[ast.AST, Scope]]:
    """Every statement below, and the functions and classes that it stands in."""
    left = [(tree, scope)]
    while left:
        node, scope = left.pop()
        yield node, scope
        inner = (*scope, node) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else scope
        parts = (getattr(node, name, []) for name in BLOCKS)
        left += [(child, inner) for part in parts for child in part][::-1]


@functools.cache
def raises() -> tuple[tuple[Path, ast.expr, Scope], ...]:
    """(file, what is raised, where it stands) of every error that says something of its own."""
    return tuple(
        (file, node.exc, scope)
        for file in sources()
        for node, scope in statements(parsed(file))
        if isinstance(node, ast.Raise) and node.exc and not passes_on(node.exc, scope)
    )


def passes_on(raised: ast.expr, scope: Scope) -> bool:
    """Whether it is silent, or gives on an error that was raised elsewhere."""
    names = {node.id for node in ast.walk(raised) if isinstance(node, ast.Name)}
    if names & SILENT:
        return True
    texts = said(given(raised, scope), scope)
    return not any(map(words, texts)) and any(names & caught(one) for one in scope[-1:])


@functools.cache
def caught(function: ast.AST) -> set[str]:
    """The names of errors that a function catches."""
    found = (node for node, _ in statements(function) if isinstance(node, ast.ExceptHandler))
    return {node.name for node in found if node.name}


@functools.cache
def functions() -> dict[str, list[tuple[Path, ast.FunctionDef]]]:
    """The package's functions by their bare names."""
    found: dict[str, list[tuple[Path, ast.FunctionDef]]] = {}
    for file in sources():
        for node, _ in statements(parsed(file)):
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, []).append((file, node))
    return found


@functools.cache
def errors() -> dict[Path, list[Error]]:
    """What each file says."""
    found: dict[Path, dict[Error, None]] = {}
    for file, raised, scope in raises():
        for home, error in texts(file, raised, scope):
            if words(error.text):
                found.setdefault(home, {})[error] = None
    return {file: list(found[file]) for file in sorted(found)}


def texts(file: Path, raised: ast.expr, scope: Scope) -> Iterator[tuple[Path, Error]]:
    """The texts of one error: its own, and those of the functions that make it or part of it."""
    where = ".".join(one.name for one in scope)  # type: ignore[attr-defined]
    made = given(raised, scope)
    yield from ((file, Error(kind_of(made), where, text)) for text in said(made, scope))
    for call in (node for node in ast.walk(made) if isinstance(node, ast.Call)):
        homes = functions().get(called(call), [])
        for home, function in [one for one in homes if one[0] == file] or homes:
            yield from ((home, error) for error in returned(function))


@functools.cache
def returned(function: ast.FunctionDef) -> tuple[Error, ...]:
    """The texts that a function gives back."""
    values = [node.value for node, _ in statements(function) if isinstance(node, ast.Return)]
    return tuple(
        Error(kind_of(value), function.name, text)
        for value in values
        if value
        for text in said(value, (function,))
    )


def called(call: ast.Call) -> str:
    """The bare name of a function or class that is called."""
    return ast.unparse(call.func).rpartition(".")[2]


def kind_of(made: ast.expr) -> str:
    """The class of what is made; '' where a function makes it."""
    name = called(made) if isinstance(made, ast.Call) else ""
    return name if name[:1].isupper() else ""


@functools.cache
def assignments(function: ast.AST) -> dict[str, ast.expr]:
    """What each name is given in a function, at last."""
    return {
        to.id: node.value
        for node, _ in statements(function)
        if isinstance(node, ast.Assign)
        for to in node.targets
        if isinstance(to, ast.Name)
    }


def given(node: ast.expr, scope: Scope) -> ast.expr:
    """What a name stands for in its function; anything else as it is."""
    if isinstance(node, ast.Name) and scope:
        return assignments(scope[-1]).get(node.id, node)
    return node


def said(made: ast.expr, scope: Scope) -> list[str]:
    """The texts that an error is given, each on one line."""
    args = made.args if isinstance(made, ast.Call) else [made]
    return [" ".join(spelled(one, scope).split()) for one in args]


def spelled(node: ast.expr, scope: Scope) -> str:
    """The words of an expression, an ellipsis for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(spelled(part, scope) for part in parts)
        case ast.FormattedValue(value=value):
            return spelled(value, scope)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return spelled(left, scope) + spelled(right, scope)
        case ast.IfExp(body=body, orelse=other):
            return one_of([body, other], scope)
        case ast.BoolOp(values=parts):
            return one_of(parts, scope)
        case ast.Name():
            value = given(node, scope)
            read = isinstance(value, (ast.Constant, ast.JoinedStr, ast.IfExp, ast.BinOp))
            return spelled(value, ()) if read else BLANK
    return BLANK


def one_of(nodes: list[ast.expr], scope: Scope) -> str:
    """The words of several expressions of which an error has one."""
    either = [text for node in nodes if (text := spelled(node, scope))]
    return f"⟨{' | '.join(either)}⟩" if any(map(words, either)) else BLANK


def words(text: str) -> bool:
    """Whether a text has words that can be searched for."""
    return len(re.findall(r"[A-Za-z]{2,}", text)) > 1


@functools.cache
def page() -> str:
    """The page."""
    lines = [
        "# Errors, by text",
        "Each text says what was needed, what came and what to do; `…` stands for what it fills in, "
        "`⟨one | another⟩` for texts of which it has one. Search this page for a few words of yours.",
    ]
    for file, said_there in errors().items():
        title = file.relative_to(PACKAGE.parent).as_posix()
        lines.append(f"## {title}")
        lines.append((ast.get_docstring(parsed(file)) or "").split("\n\n")[0])
        lines += [
            f"- {kind or 'words'} of `{where or 'the module'}`: `{text.replace('`', chr(39))}`"
            for kind, where, text in said_there
        ]
    return "\n\n".join(lines) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """The site's files with the page (called by mkdocs)."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "errors.md", content=page()))
    return files
