"""METEOR 1.5, run as its authors' program, which the package pycocoevalcap ships; it needs Java."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lora_jax.core.extras import needs

_JAR = "meteor-1.5.jar"


def meteor_score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR of texts whose words stand between spaces, 0 to 1, with the scorer's own normalisation
    (`-norm`, English).

    Raises:
        ImportError: pycocoevalcap is not installed.
        FileNotFoundError: there is no `java`.
        RuntimeError: the program failed.
    """
    with needs("meteor"):
        import pycocoevalcap

    jar = next(Path(folder) / "meteor" / _JAR for folder in pycocoevalcap.__path__)
    java = shutil.which("java")
    if java is None:
        raise FileNotFoundError(
            "METEOR is a Java program, and there is no 'java' on the PATH. Install a Java runtime, "
            "or leave the metric out."
        )
    lines = [
        " ||| ".join(("SCORE", *map(_clean, texts), _clean(text)))
        for text, texts in zip(predictions, references, strict=True)
    ]
    command = [java, "-Xmx2G", "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command,
        cwd=jar.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    ) as program:
        statistics = [_ask(program, line) for line in lines]
        # It answers with a score for each text, and the total last.
        _ask(program, " ||| ".join(("EVAL", *statistics)))
        for _ in lines[1:]:
            program.stdout.readline()
        return float(program.stdout.readline())


def _ask(program: subprocess.Popen, line: str) -> str:
    # A program that has ended takes no line, or answers with none.
    with contextlib.suppress(BrokenPipeError):
        program.stdin.write(line + "\n")
        program.stdin.flush()
        if answer := program.stdout.readline().strip():
            return answer
    raise RuntimeError("METEOR's program ended early. Does this Java have 2 GB of memory?")


def _clean(text: str) -> str:
    return " ".join(text.replace("|||", " ").split())
