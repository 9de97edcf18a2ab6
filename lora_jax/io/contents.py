"""What a name of a model or a data set stands for now: a run is its settings and these contents."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from lora_jax.io.hub import PIECES, WHEELS, sha256_of


def contents(names: Iterable[str]) -> dict[str, str]:
    """{name: what it stands for}: 16 hex digits of the sha256 of a file or of a folder's files, or
    the package that ships it.

    A name that is neither (a Hugging Face id, a TFDS name) is left out: what it stands for is known
    once it is fetched.

    Raises:
        OSError: a file is there and cannot be read.
    """
    found = {name: _content(name) for name in dict.fromkeys(names) if name}
    return {name: content for name, content in found.items() if content is not None}


def changed_contents(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names that stand for something else than they did; what is unknown on a side is no
    change.
    """
    return [name for name in now if name in then and then[name] != now[name]]


def _content(name: str) -> str | None:
    path = Path(name).expanduser()
    if path.is_file():
        return _digest_of(path)
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            # Hidden files (caches, locks) and READMEs are nothing that is loaded.
            inside = file.relative_to(path)
            hidden = any(part.startswith(".") for part in inside.parts)
            if file.is_file() and not hidden and file.suffix != ".md":
                digest.update(f"{inside.as_posix()}\0{_digest_of(file)}\0".encode())
        return digest.hexdigest()[:16]

    shipped = name.partition("/")[0]
    if shipped in WHEELS:
        return f"{WHEELS[shipped].package} {WHEELS[shipped].version}"
    return PIECES[shipped].sha256[:16] if shipped in PIECES else None


def _digest_of(file: Path) -> str:
    stat = file.stat()
    return _digest(str(file.resolve()), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=10_000)
def _digest(file: str, modified: int, size: int) -> str:
    """A file that has kept its time and size is read once a process."""
    return sha256_of(Path(file))[:16]
