"""What a name of a model or a data set stands for now: a run is its settings and these contents."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from lora_jax.core.cache import cache_dir
from lora_jax.core.extras import needs
from lora_jax.core.json_files import read_json
from lora_jax.io.hub import HUGGING_FACE_FILES, PIECES, WHEELS, sha256_of

# 'org/name' or 'name' of a model, 'hf:org/name/config' of a dataset.
_HUGGING_FACE = re.compile(
    r"(?P<data>hf:)?((?P<org>[\w.-]+)/)?(?P<name>[\w.-]+)(?(data)(/(?P<config>.+))?)"
)


def contents(names: Iterable[str], revision: str | None = None) -> dict[str, str]:
    """{name: what it stands for}: 16 hex digits of the sha256 of a file or of a folder's files, the
    package that ships it, the same digits of the files of a Hugging Face id that were fetched last
    (of a model at `revision`), or the version and size of a data set that TFDS has prepared.

    A name that is to be fetched yet is left out: what it stands for is known then. Nothing is asked
    of the network.

    Raises:
        OSError: a file is there and cannot be read.
    """
    found = {name: _content(name, revision) for name in dict.fromkeys(names) if name}
    return {name: content for name, content in found.items() if content is not None}


def changed_contents(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names that stand for something else than they did; what is unknown on a side is no
    change.
    """
    return [name for name in now if name in then and then[name] != now[name]]


def _content(name: str, revision: str | None) -> str | None:
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
    if shipped in PIECES:
        return PIECES[shipped].sha256[:16]
    return _fetched(name, revision) or _prepared(name)


def _fetched(name: str, revision: str | None) -> str | None:
    """What the local cache of Hugging Face has for an id: the files of the commit that was fetched
    last, by the digests that they are kept under.
    """
    found = _HUGGING_FACE.fullmatch(name)
    try:
        with needs("hub"):
            from huggingface_hub import constants
    except ModuleNotFoundError:  # So nothing was fetched.
        return None
    if found is None:
        return None
    kind, branch = ("datasets", "main") if found["data"] else ("models", revision or "main")
    owner = f"{found['org']}--" if found["org"] else ""
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{owner}{found['name']}"
    ref = folder / "refs" / branch
    commit = ref.read_text().strip() if ref.is_file() else branch
    # Others that use the cache fetch other files of a model.
    patterns = ["*"] if found["data"] else HUGGING_FACE_FILES
    inside = folder / "snapshots" / commit
    part = f"/{found['config']}/" if found["config"] else ""
    kept = []
    for file in sorted(inside.rglob("*")):
        place, kept_as = file.relative_to(inside).as_posix(), file.resolve()
        wanted = part in f"/{place}" and any(fnmatch(place, pattern) for pattern in patterns)
        if wanted and file.suffix != ".md" and kept_as.is_file():
            by_name = kept_as.parent.name == "blobs"
            kept.append([place, kept_as.name if by_name else _digest_of(kept_as)])
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16] if kept else None


def _prepared(name: str) -> str | None:
    """What TFDS says of the newest version that it has prepared of a data set, or of the one that
    the name asks for: 'glue/sst2', 'glue/sst2:2.0.0'.
    """
    family, _, asked = name.partition(":")
    notes = (cache_dir() / "tfds" / family).glob(f"{asked or '*'}/dataset_info.json")
    versions = {
        tuple(map(int, note.parent.name.split("."))): note
        for note in notes
        if re.fullmatch(r"\d+\.\d+\.\d+", note.parent.name)
    }
    if not versions:
        return None
    newest = versions[max(versions)]
    try:
        splits = [
            (split["name"], sum(map(int, split["shardLengths"])), int(split["numBytes"]))
            for split in read_json(newest)["splits"]
        ]
    except (KeyError, TypeError, ValueError):  # Whoever opens it says what is wrong with it.
        return None
    digest = hashlib.sha256(json.dumps(sorted(splits)).encode()).hexdigest()
    return f"version {newest.parent.name}, {digest[:16]}"


def _digest_of(file: Path) -> str:
    stat = file.stat()
    return _digest(str(file.resolve()), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=10_000)
def _digest(file: str, modified: int, size: int) -> str:
    """A file that has kept its time and size is read once a process."""
    return sha256_of(Path(file))[:16]
